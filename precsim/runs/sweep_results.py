"""What a sweep came to: an outcome for each run, a row for each recipe and combination of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import isfinite, log
from pathlib import Path
from typing import Any

from precsim.runs.grid import Cell, Grid, Values, shown
from precsim.runs.results import Run
from precsim.runs.run import StoredRun, open_run


@dataclass(frozen=True)
class Outcome:
    """What one run came to: `loss` is its last validation loss, NaN once the weights are destroyed.

    `steps` is how many it did, `died_at` the step after which its weights were not finite.
    """

    loss: float
    steps: int
    died_at: int | None

    @classmethod
    def of(cls, run: Run) -> Outcome:
        """Return what a run came to."""
        return cls(run.valid_loss(), len(run.records), run.died_at)

    @property
    def diverged(self) -> bool:
        """Whether it ended in weights or a loss that are not numbers."""
        return self.died_at is not None or not isfinite(self.loss)


class Sweep:
    """A sweep that is over: its directory `path`, `grid`, `rows`, `runs`, and the best of a recipe.

    `outcomes` has what each run came to, by the name of its directory, as `runs` has the runs.
    """

    def __init__(self, path: Path, grid: Grid, outcomes: Mapping[str, Outcome]) -> None:
        self.path = path
        self.grid = grid
        self.outcomes = {cell.name: outcomes[cell.name] for cell in grid.cells}

    @cached_property
    def runs(self) -> dict[str, StoredRun]:
        """The recorded runs by name; of each nothing but its manifest is read before it is asked."""
        return {cell.name: open_run(self.path / cell.name) for cell in self.grid.cells}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """A plain dict for each recipe with each combination of values, in the order of the grid.

        `recipe` ("" where none was swept over), the values by name, `loss`: the mean of the final
        validation losses over the seeds that did not diverge, NaN if all did; `low` and `high`, the
        ends of their range; `seeds`, and how many `diverged`; `best`: whether it is `best(recipe)`;
        `losses` and `runs`, one for each seed.
        """
        rows = [self._row(*point) for point in self.grid.points]
        for name in self.grid.recipes:
            alive = [row for row in rows if row["recipe"] == name and isfinite(row["loss"])]
            if alive:
                min(alive, key=lambda row: (row["diverged"], row["loss"]))["best"] = True
        return rows

    def _row(self, name: str, values: Values) -> dict[str, Any]:
        cells = [c for c in self.grid.cells if c.recipe == name and c.values == values]
        outcomes = [self.outcomes[cell.name] for cell in cells]
        alive = [one.loss for one in outcomes if not one.diverged]
        nan = float("nan")
        return {
            "recipe": name, **values,
            "loss": sum(alive) / len(alive) if alive else nan,
            "low": min(alive, default=nan), "high": max(alive, default=nan),
            "seeds": len(cells), "diverged": len(cells) - len(alive), "best": False,
            "losses": [one.loss for one in outcomes], "runs": [cell.name for cell in cells],
        }  # fmt: skip

    def best(self, recipe: str | None = None) -> dict[str, Any]:
        """Return the row of a recipe of which fewest runs diverged and, of as many, the mean is lowest.

        None is the only recipe that there is.  Raises `ValueError` for one that was not swept over,
        and where every run diverged.
        """
        known = self.grid.recipes
        if recipe is None and len(known) == 1:
            recipe = known[0]
        if recipe not in known:
            names = ", ".join(filter(None, known)) or "none, so that best() is all there is"
            msg = f"no recipe {recipe!r} in this sweep: it has {names}"
            raise ValueError(msg)
        for row in self.rows:
            if row["recipe"] == recipe and row["best"]:
                return row
        msg = f"every run{f' of {recipe}' if recipe else ''} diverged: there is no best"
        raise ValueError(msg)

    @property
    def diverged(self) -> list[Cell]:
        """The cells whose runs diverged."""
        return [cell for cell in self.grid.cells if self.outcomes[cell.name].diverged]

    @property
    def guess(self) -> float | None:
        """Loss of guessing evenly, ln V; None where texts with other letters are swept over."""
        sizes = {run.vocabulary for run in self.runs.values()}
        return log(sizes.pop()) if len(sizes) == 1 else None

    def sentences(self) -> list[tuple[str, str]]:
        """Say of each recipe where it is best, and how many of its runs diverged."""
        return [(name, self._sentence(name)) for name in self.grid.recipes]

    def _sentence(self, name: str) -> str:
        rows = [row for row in self.rows if row["recipe"] == name]
        runs, lost = sum(row["seeds"] for row in rows), sum(row["diverged"] for row in rows)
        best = next((row for row in rows if row["best"]), None)
        if best is None:
            return f"every run diverged ({runs} of {runs})"
        tied = [row for row in rows if row["loss"] == best["loss"]]
        edge = self._edge(best) if len(tied) == 1 else ""
        first, rest = self.grid.swept[:1], self.grid.swept[1:]
        place = ", ".join(filter(None, [words(best, first) + edge, words(best, rest)]))
        what = f"best at {place}: " * bool(place) + f"{best['loss']:.3f}"
        if len(best["losses"]) - best["diverged"] > 1:
            what += f" ({best['low']:.3f} to {best['high']:.3f})"
        return f"{what}; {lost or 'none'} of {runs} run{'s' * (runs > 1)} diverged"

    def _edge(self, best: Mapping[str, Any]) -> str:
        """Say so where the best of the first number is its smallest or largest: it may lie beyond."""
        values = self.grid.over[self.grid.swept[0]] if self.grid.swept else []
        if len(values) < 3 or not all(isinstance(value, int | float) for value in values):
            return ""
        ends = {min(values): " (the smallest tried)", max(values): " (the largest tried)"}
        return ends.get(best[self.grid.swept[0]], "")

    def __repr__(self) -> str:
        lines = [f"Sweep({str(self.path)!r}, {self.grid})"]
        lines += [f"  {name}: {what}" if name else f"  {what}" for name, what in self.sentences()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the grid, the rows, and what each run came to."""
        runs = []
        for cell in self.grid.cells:
            outcome = self.outcomes[cell.name]
            place = {"name": cell.name, "recipe": cell.recipe, "values": dict(cell.values)}
            came_to = asdict(outcome) | {"diverged": outcome.diverged}
            runs.append({**place, "seed": cell.seed, **came_to})
        return {"path": str(self.path), **self.grid.to_dict(), "rows": self.rows, "runs": runs}


def words(values: Values, names: Iterable[str]) -> str:
    """Return values as a sentence has them: lr=0.003, batch=16."""
    return ", ".join(f"{name}={shown(values[name])}" for name in names)
