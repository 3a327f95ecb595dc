"""Progress of several runs on stderr: live on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status
from rich.text import Text

if TYPE_CHECKING:
    from precsim.runs.sweep import Progress as SweepProgress

LINES = 4
"""Lines that a run gets where there is no terminal to draw on."""


class _Shown:
    """What is drawn on a terminal while a block runs, and nowhere else: then `live` is None."""

    live: Progress | Status | None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()


def _draws(console: Console, *, quiet: bool) -> bool:
    return console.is_terminal and not console.is_dumb_terminal and not quiet


class Bars(_Shown):
    """One bar for each run; call it with a run's name, its steps done, and its latest loss.

    `runs` maps a name to its title and rich style.  Nothing is drawn if `quiet`.
    """

    def __init__(
        self,
        console: Console,
        runs: Mapping[str, tuple[str, str]],
        steps: int,
        *,
        quiet: bool = False,
    ) -> None:
        self.console = console
        self.runs = runs
        self.steps = steps
        self.quiet = quiet
        self.live: Progress | None = None
        if _draws(console, quiet=quiet):
            self.live = Progress(
                TextColumn("{task.fields[title]}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]:>11}", markup=False),
                TimeRemainingColumn(compact=True),
                console=console,
                expand=True,
            )
            self.tasks = {
                name: self.live.add_task(
                    "",
                    total=steps,
                    title=f"[{style or 'default'}]{escape(title)}",
                    loss="",
                    start=False,
                )
                for name, (title, style) in runs.items()
            }

    def __call__(self, name: str, done: int, loss: float) -> None:
        """Show that a run has done so many steps, the last with this loss."""
        title, style = self.runs[name]
        if self.live:
            task = self.tasks[name]
            self.live.start_task(task)
            self.live.update(task, completed=done, loss=f"loss {loss:.3f}")
        elif not self.quiet and done * LINES // self.steps > (done - 1) * LINES // self.steps:
            line = f"{title}: step {done} of {self.steps}, loss {loss:.3f}"
            self.console.print(Text(line, style=style))


class SweepLine(_Shown):
    """One line for a whole sweep; where there is no terminal to draw on, one for each run's end."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.live: Status | None = None
        self.began: tuple[float, int] | None = None  # when, and how many runs were over then
        if _draws(console, quiet=quiet):
            self.live = console.status("")

    def __call__(self, now: SweepProgress) -> None:
        """Show how far a sweep is."""
        if self.began is None:
            self.began = (time.monotonic(), now.over)
            if now.over and not self.quiet:
                self.console.print(f"{now.over} of {now.total} runs are over already")
        if self.live:
            line = Text(self._line(now, *self.began), no_wrap=True, overflow="ellipsis")
            self.live.update(line)
        elif now.outcome is not None and not self.quiet:
            came_to = f"validation loss {now.outcome.loss:.3f}"
            if now.outcome.diverged:
                came_to = f"diverged after {now.done} step{'s' * (now.done != 1)}"
            self.console.print(f"{now.over} of {now.total}: {now.cell.title}: {came_to}")

    def _line(self, now: SweepProgress, since: float, at: int) -> str:
        steps = now.cell.config.steps
        number = now.over + (now.outcome is None)
        parts = [f"{number}/{now.total} {now.cell.title}: step {now.done}/{steps}"]
        if now.loss is not None:
            parts.append(f"loss {now.loss:.3f}")
        done = now.over - at + (now.done / steps if now.outcome is None else 0)
        if done > 0:
            left = (time.monotonic() - since) / done * (now.total - at - done)
            parts.append(f"{left / 60:.0f} min left" if left >= 90 else f"{left:.0f} s left")
        return ", ".join(parts)
