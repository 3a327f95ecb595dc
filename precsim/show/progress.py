"""Progress of several runs on stderr: live bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

LINES = 4
"""Lines that a run gets where there is no terminal to draw on."""


class Bars:
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
        if console.is_terminal and not console.is_dumb_terminal and not quiet:
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

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

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
