"""What a training run is made of: one flat, frozen record that a TOML file or --set can spell."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

from precsim.engine.policy import Policy
from precsim.engine.tape import OPS
from precsim.nn.gpt import GPTConfig
from precsim.nn.scaling import parse as parse_scale
from precsim.observe.trace import Level
from precsim.runs.schedule import AtSteps
from precsim.runs.schedule import parse as parse_schedule


class ConfigError(ValueError):
    """A configuration that cannot run; the message says which entry, what came, what was expected."""


_COUNTS = ("steps", "batch", "accumulation", "micro_batches", "eval_every", "checkpoint_every")
_AMOUNTS = ("lr", "eps", "weight_decay", "clip", "momentum", "warmup", "beta1", "beta2",
            "max_trace")  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a run's bits, with the data.  Raises `ConfigError` if it cannot be.

    `data` is a task of `precsim.runs.data` or a file; `policy` a `Policy` in its string form;
    `loss_scale` as in `precsim.nn.scaling.parse`.  Sizes are the model's (`GPTConfig`).

    `init` is a file of weights to start from (see `precsim.runs.pretrained`); "" draws them.
    `precision_schedule` (see `precsim.runs.schedule`) changes the policy while the run goes on.

    `accumulation` computes that many micro-batches per update and divides each one's loss by their
    number.  `micro_batches` divides it as if there were that many, computes one, and takes its
    gradient that many times: the gradients are as small as in a run that large, at the cost of one.

    `optimizer`: adamw, adamw8bit (`precsim.nn.optim8bit`), adamw_msamp (`precsim.nn.optim_msamp`)
    or sgd.  ``weights_update="kahan"`` keeps what rounding the weights left over, in one more
    tensor of their format (`precsim.nn.optim`).

    The last three change no bit of the run.  `observe`: how closely it is watched, a level of
    `precsim.observe.trace`.  `checkpoint_every`: steps between checkpoints of a run that is
    recorded.  `max_trace`: bytes that its ops may take on the disk; 0 is no limit.
    """

    data: str = "pydoc"
    init: str = ""
    policy: str = "fp32"
    loss_scale: str = "none"
    precision_schedule: str = "none"
    layers: int = 2
    heads: int = 4
    width: int = 64
    context: int = 64
    tied: bool = False
    dropout: float = 0.0
    steps: int = 200
    batch: int = 16
    accumulation: int = 1
    micro_batches: int = 1
    optimizer: str = "adamw"
    weights_update: str = "plain"
    lr: float = 3e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 0.0
    warmup: int = 10
    schedule: str = "cosine"
    eval_every: int = 50
    seed: int = 0
    observe: str = "hist"
    checkpoint_every: int = 50
    max_trace: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, _typed(f.name, getattr(self, f.name), f.type))
        self._check_choices()
        try:
            policy = Policy.parse(self.policy)
            object.__setattr__(self, "policy", str(policy))
            parse_scale(self.loss_scale)
            schedule = parse_schedule(self.precision_schedule)
            if isinstance(schedule, AtSteps):
                schedule.check(self.eval_every)
            object.__setattr__(self, "observe", str(Level.parse(self.observe)))
            self.model(vocabulary=1)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        for rule in policy.rules:
            _check_op(rule.op)

    def _check_choices(self) -> None:
        choices = {
            "optimizer": ("adamw", "adamw8bit", "adamw_msamp", "sgd"),
            "weights_update": ("plain", "kahan"),
            "schedule": ("cosine", "constant"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                msg = f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}"
                raise ConfigError(msg)
        for name in _COUNTS:
            if getattr(self, name) < 1:
                msg = f"{name} must be at least 1; got {getattr(self, name)}"
                raise ConfigError(msg)
        for name in _AMOUNTS:
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                msg = f"{name} must be a finite number >= 0; got {value}"
                raise ConfigError(msg)
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                msg = f"{name} must be below 1; got {getattr(self, name)}"
                raise ConfigError(msg)

    def model(self, vocabulary: int) -> GPTConfig:
        """Return the sizes of the model for a vocabulary."""
        return GPTConfig(
            self.layers, self.heads, self.width, self.context, vocabulary, self.tied, self.dropout
        )

    def change(self, **changes: Any) -> TrainConfig:
        """Return a copy with some entries changed; an unknown name raises `ConfigError`."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=2)
                hint = (
                    f"did you mean {' or '.join(near)}?"
                    if near
                    else f"expected one of {', '.join(known)}"
                )
                msg = f"unknown configuration entry {name!r}: {hint}"
                raise ConfigError(msg)
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all entries, for a manifest."""
        return asdict(self)


def read(path: str | Path) -> dict[str, Any]:
    """Return the entries of a TOML file.

    Raises `ConfigError` where the file is missing, unreadable, not UTF-8, not TOML, or has tables.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8")
        entries = tomllib.loads(text)
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}; expected a TOML file of 'entry = value' lines"
        raise ConfigError(msg) from None
    except UnicodeDecodeError as error:
        msg = f"{path} is not UTF-8 text (byte {error.start}): expected a TOML file"
        raise ConfigError(msg) from None
    except ValueError as error:  # TOMLDecodeError is one; so is an integer of too many digits
        msg = f"{path} is not valid TOML: {error}"
        raise ConfigError(msg) from None
    for name, value in entries.items():
        if isinstance(value, dict):
            msg = f"{path}: the table [{name}] is not expected; entries are flat: steps = 200"
            raise ConfigError(msg)
    return entries


def parse_assignments(pairs: list[str]) -> dict[str, Any]:
    """Read ["steps=100", "policy=bf16"] into entries; values are TOML where they are, else text."""
    entries: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            msg = f"--set {pair!r}: expected key=value, e.g. --set steps=100"
            raise ConfigError(msg)
        try:
            entries[name.strip()] = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            entries[name.strip()] = text.strip()
    return entries


_SPOKEN = {"str": "text", "bool": "true or false", "int": "a whole number", "float": "a number"}


def _typed(name: str, value: Any, wanted: Any) -> Any:
    """Return `value` as the field's type; raise where it is another, or is not a whole number."""
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,), "bool": (bool,), "int": (int,), "float": (int, float),
    }  # fmt: skip
    kind = str(wanted)
    given: Any = value
    if not isinstance(value, kinds[kind]) or (kind != "bool" and isinstance(value, bool)):
        msg = f"{name} must be {_SPOKEN[kind]}; got {value!r}"
        raise ConfigError(msg)
    try:
        return float(given) if kind == "float" else value
    except OverflowError:
        msg = f"{name} must be a finite number; got an integer of {given.bit_length()} bits"
        raise ConfigError(msg) from None


def _check_op(pattern: str) -> None:
    """Raise where a rule speaks of no op and no kind of op, and so would change nothing."""
    known = sorted({*OPS, *(op.kind for op in OPS.values())})
    if not any(fnmatchcase(name, pattern) for name in known):
        near = difflib.get_close_matches(pattern, known, n=2)
        hint = (
            f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(known)}"
        )
        msg = f"rule op={pattern} matches no op: {hint}"
        raise ConfigError(msg)
