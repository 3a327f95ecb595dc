"""``ps.report``: recorded runs as one HTML file."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from precsim.runs.files import RunError, write_file
from precsim.runs.results import Run
from precsim.runs.run import Source, stored

if TYPE_CHECKING:
    from precsim.report.collect import Collected

MOST_RUNS = 8

DRIFT = 6
"""Checkpoints at which gradients are compared, if nobody says how many."""


def report(
    runs: Source | Sequence[Source],
    out: str | os.PathLike[str] = "report.html",
    *,
    drift: int = DRIFT,
    twin: bool = False,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Path:
    """Write recorded runs (directories, or what `precsim.open` gave) into one HTML file; return it.

    The file loads nothing and can be read without scripts.  The first run is what the others are
    compared with.  Of a long run it holds a choice of steps, and says so.  `drift` is how many
    checkpoints gradients are compared at; `twin` trains the runs again beside float64 twins, and
    `on_step` hears how that goes on: steps done, of how many, the loss.

    Raises `RunError` for no run or more than `MOST_RUNS`, for a run that cannot be read, a file that
    cannot be written, and where the packages of the extra "report" are missing.
    """
    from precsim.report import page
    from precsim.report.collect import collect
    from precsim.report.player import MOST_ROWS

    page.require()
    given = [runs] if isinstance(runs, Run | str | os.PathLike) else list(runs)
    if not 1 <= len(given) <= MOST_RUNS:
        msg = f"expected 1 to {MOST_RUNS} runs in one report; got {len(given)}"
        raise RunError(msg)
    opened = [stored(one) for one in given]
    whole = sum(len(run.records) for run in opened)
    found: list[Collected] = []
    called = names([run.path for run in opened])
    places = {run.path.resolve(): name for run, name in zip(opened, called, strict=True)}
    for run, name in zip(opened, called, strict=True):
        before = sum(len(one.records) for one in found)

        def tell(done: int, loss: float, before: int = before) -> None:
            if on_step is not None:
                on_step(before + done, whole, loss)

        rows = MOST_ROWS // len(opened)
        found.append(
            collect(run, name, rows=rows, points=drift, twin=twin, on_step=tell, places=places)
        )
    path = Path(out)
    words = ["precsim", "report", *called, "-o", path.name]
    words += ["--twin"] if twin else ["--drift", str(drift)] if drift != DRIFT else []
    write_file(path, page.render(found, shlex.join(words)).encode())
    return path


def names(folders: Sequence[Path]) -> list[str]:
    """Return a name for each run: its folder's, with the folders above it where that is not enough."""
    paths = [folder.resolve() for folder in folders]
    found: list[str] = []
    for parts in range(1, 1 + max(len(path.parts) for path in paths)):
        found = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            break
    seen: Counter[str] = Counter()
    unique = []
    for name in found:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
