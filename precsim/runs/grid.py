"""The grid of a sweep: recipes x values x seeds, and the config of every cell.

Whatever cannot be a cell is refused here, before anything is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice, product
from math import prod
from typing import Any

from precsim.recipes import recipe
from precsim.runs.config import ConfigError, TrainConfig, parse_assignments

RECIPE = "recipe"
"""The key that is no entry of a config: the recipes to try."""

MOST = 1000
"""Runs that a grid may have: more is a slip of the keyboard, or weeks."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run of a grid.  `name` is its directory; `recipe` is "" where the config says it all."""

    name: str
    recipe: str
    values: Values
    seed: int
    config: TrainConfig

    @property
    def title(self) -> str:
        """What a sentence calls it: fp16_scaled, lr=0.003, seed 0."""
        return ", ".join([*_words(self.recipe, self.values), f"seed {self.seed}"])


@dataclass(frozen=True)
class Grid:
    """What is swept: entry -> its values, `recipe` among them, for each of the seeds.

    Of what disagrees, the later wins: the config, what a recipe sets, `fixed`, the swept value.
    Raises `ConfigError` for an unknown entry or recipe, values that are no list, none or some that
    come twice, a config that cannot be, and more than `MOST` runs.
    """

    config: TrainConfig
    over: Mapping[str, Sequence[Any]]
    seeds: Sequence[int]
    fixed: Values

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        over: Mapping[str, Iterable[Any]],
        seeds: Iterable[int] | None = None,
        fixed: Values | None = None,
    ) -> Grid:
        """Return the grid that was asked for, with plain values; no seeds are that of the config."""
        if not isinstance(config, TrainConfig):
            msg = f"expected a TrainConfig, such as TrainConfig(steps=100); got {config!r:.60}"
            raise TypeError(msg)
        if not isinstance(over, Mapping):
            msg = f"over must map entries to values, {{'lr': [0.001, 0.003]}}; got {over!r:.60}"
            raise ConfigError(msg)
        kept = dict(fixed or {})
        _check_names(config, over, kept)
        lists = {name: _listed(name, values) for name, values in over.items()}
        if not lists and seeds is None:
            msg = "the grid is empty: expected entries to sweep over, such as lr, recipes, or seeds"
            raise ConfigError(msg)
        chosen = [config.seed] if seeds is None else _listed("seeds", seeds)
        sizes = [_counted(len(values), name) for name, values in lists.items()]
        count = len(chosen) * prod(map(len, lists.values()))
        if count > MOST:
            asked = " x ".join([*sizes, _counted(len(chosen), "seed")])
            msg = f"the grid has {count:,} runs ({asked}): expected at most {MOST:,}"
            raise ConfigError(msg)
        grid = cls(config, lists, chosen, kept)
        _ = grid.cells  # now or never: a value that a config refuses is told before any training
        for name, values in {**lists, "seeds": chosen}.items():
            for number, value in enumerate(values):
                if value in values[:number]:
                    msg = f"{name} has {shown(value)} twice"
                    raise ConfigError(msg)
        return grid

    @property
    def swept(self) -> list[str]:
        """The entries that are swept over, without recipes and seeds."""
        return [name for name in self.over if name != RECIPE]

    @property
    def recipes(self) -> list[str]:
        """The recipes, [""] where there are none to compare."""
        return list(self.over.get(RECIPE, [""]))

    @cached_property
    def points(self) -> list[tuple[str, Values]]:
        """The rows of the table: each recipe with each combination of values, in their order."""
        lists = [self.over[name] for name in self.swept]
        return [
            (one, dict(zip(self.swept, values, strict=True)))
            for one in self.recipes
            for values in product(*lists)
        ]

    @cached_property
    def cells(self) -> list[Cell]:
        """Every run, all of the first seed before any of the second: early on each row has one."""
        return [self._cell(*point, seed) for seed in self.seeds for point in self.points]

    def _cell(self, name: str, values: Values, seed: int) -> Cell:
        words = _words(name, values)
        settings = recipe(name).settings() if name else {}
        given = {key: _spelled(key, value) for key, value in values.items()}
        try:
            config = self.config.change(**{**settings, **self.fixed, **given, "seed": seed})
        except ConfigError as error:
            msg = f"{', '.join(words)}: {error}" if words else str(error)
            raise ConfigError(msg) from None
        safe = [_safe(word) for word in [*words, f"seed={seed}"]]
        return Cell("-".join(safe), name, values, seed, config)

    def __str__(self) -> str:
        sizes = [_counted(len(values), name) for name, values in self.over.items()]
        return " x ".join([*sizes, _counted(len(self.seeds), "seed")])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        over = {name: list(values) for name, values in self.over.items()}
        config = self.config.to_dict()
        return {"config": config, "fixed": dict(self.fixed), "over": over, "seeds": [*self.seeds]}


def _check_names(config: TrainConfig, over: Mapping[str, Any], fixed: Values) -> None:
    """Raise for entries that there are not, and for those that say two things."""
    for name in {**over, **fixed}:
        if name == "seed":
            msg = "seeds are averaged over, not swept: say seeds=range(3), or --seeds 0-2"
            raise ConfigError(msg)
        if name in over and name in fixed:
            msg = f"{name} is set to {shown(fixed[name])} and swept over: expected one of the two"
            raise ConfigError(msg)
        if name != RECIPE and name not in TrainConfig.__dataclass_fields__:
            config.change(**{name: None})  # which raises, and knows what is near
    if RECIPE in over and ("policy" in over or "policy" in fixed):
        msg = "a recipe sets the policy: expected recipes or policies, not both"
        raise ConfigError(msg)


def shown(value: Any) -> str:
    """Return a value as tables and directories have it: 0.003, 1e-05, true, static:1024."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e9:
            return f"{value:.0f}"
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _words(name: str, values: Values) -> list[str]:
    return [*([name] if name else []), *(f"{key}={shown(value)}" for key, value in values.items())]


def _counted(count: int, name: str) -> str:
    plural = name in (RECIPE, "seed") and count != 1
    return f"{count} {name}{'s' * plural}"


def _safe(word: str) -> str:
    """Return text as part of a file's name; what that loses, a few digits of its hash make up for."""
    safe = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", word)[:48]
    return safe if safe == word else f"{safe}_{sha256(word.encode()).hexdigest()[:6]}"


def _listed(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the values of an entry as a list of plain ones, as many as a grid may have."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        msg = f"{name} must have a list of values; got {values!r:.60}"
        raise ConfigError(msg)
    size = len(values) if isinstance(values, Sized) else 0
    first = list(islice(values, MOST + 1))  # others may have no end
    if len(first) > MOST:
        many = f"{size:,}" if size else f"more than {MOST:,}"
        msg = f"{name} has {many} values: expected a grid of at most {MOST:,} runs"
        raise ConfigError(msg)
    found = [_plain(name, value) for value in first]
    if not found:
        msg = f"{name} has no values: the grid is empty"
        raise ConfigError(msg)
    return found


def _plain(name: str, value: Any) -> Any:
    """Return a value as Python's own type, of the kind that the entry has: np.int64(8) is 8."""
    value = value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value
    if name == RECIPE:
        try:
            return recipe(str(value)).name
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if name == "loss_scale":
        return _number(value)
    if name == "seeds":
        return TrainConfig(seed=value).seed
    wanted = TrainConfig.__dataclass_fields__.get(name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and wanted is not None and wanted.type == "float" else value


def _number(value: Any) -> Any:
    """Return the number of a loss scale that stands still; others are their text."""
    kind, _, number = value.partition(":") if isinstance(value, str) else ("", "", "")
    try:
        return float(number) if kind == "static" else value
    except ValueError:
        return value


def _spelled(name: str, value: Any) -> Any:
    """Return a swept value as the config has it: a number is a loss scale that stands still."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"static:{shown(value)}" if name == "loss_scale" and number else value


def parse_over(pairs: Iterable[str]) -> dict[str, list[Any]]:
    """Read ["lr=1e-3,3e-3"] into values by entry; what has commas in it is a TOML list.

    Raises `ConfigError` for text that is neither, and for an entry that comes twice.
    """
    over: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, text = (part.strip() for part in pair.partition("="))
        if not equals:
            msg = f"--over {pair!r}: expected key=value,value, e.g. --over lr=1e-3,3e-3"
            raise ConfigError(msg)
        if name in over:
            msg = f"--over {name} comes twice: expected all its values in one list"
            raise ConfigError(msg)
        if text.startswith("["):
            values = parse_assignments([pair])[name]
            if not isinstance(values, list):
                msg = f"--over {pair!r} is no list: expected one as TOML has it, [0.001, 0.003]"
                raise ConfigError(msg)
            over[name] = values
            continue
        parts = text.split(",")
        if not all(part.strip() for part in parts):
            what = "a value is missing" if text else "the grid is empty"
            msg = f"--over {pair!r}: {what}; expected key=value,value, e.g. lr=1e-3,3e-3"
            raise ConfigError(msg)
        over[name] = [parse_assignments([f"{name}={part}"])[name] for part in parts]
    return over


def parse_seeds(text: str) -> list[int]:
    """Read "0-2" or "0,1,7-9" into seeds; raise `ConfigError` for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if last < first:
            msg = f"--seeds {text!r:.60}: expected seeds such as 0-2, or 0,1,7"
            raise ConfigError(msg)
        if len(seeds) + last - first >= MOST:
            msg = f"--seeds {text:.60}: expected a grid of at most {MOST:,} runs"
            raise ConfigError(msg)
        seeds += range(first, last + 1)
    return seeds
