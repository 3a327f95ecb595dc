"""Guards: an observer that fails is left out, and what it watched goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from precsim.engine.context import Observer
from precsim.engine.dispatch import Event
from precsim.observe.trace import shorten


class Breakpoint(Exception):
    """Raised by an observer that means to end what it watches; no guard holds it back."""


class Guard:
    """Calls an observer until it fails; then says so once, in a warning, and never calls it again.

    What is caught is `Exception`: Ctrl-C and the like end the run as ever, and so does
    `Breakpoint`.  Raises nothing else, unless warnings are errors.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer: Observer | None = observer
        self._name = name_of(observer)
        self.needs = getattr(observer, "needs", "exact")

    def __call__(self, event: Event) -> None:
        """Show one op to the observer, as long as it lives."""
        if self._observer is None:
            return
        try:
            self._observer(event)
        except Breakpoint:
            raise
        except Exception as error:  # noqa: BLE001  (whatever fails, it is not the run)
            self._observer = None
            msg = (
                f"observer {self._name} failed at step {event.step}, op {event.path}: {error!r}; "
                "the run goes on without it"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2)


def guarded(observers: Iterable[Observer]) -> tuple[Guard, ...]:
    """Return each observer behind a guard of its own."""
    return tuple(
        observer if isinstance(observer, Guard) else Guard(observer) for observer in observers
    )


def name_of(observer: Observer) -> str:
    """Return what a person knows an observer by: its name, file and line, or its class."""
    function = getattr(observer, "__func__", observer)
    code = getattr(function, "__code__", None)
    if code is not None:
        name = getattr(function, "__qualname__", "").rpartition("<locals>.")[2] or code.co_name
        return f"{name} ({shorten(code.co_filename)}:{code.co_firstlineno})"
    kind = type(observer)
    return str(getattr(observer, "__qualname__", f"{kind.__module__}.{kind.__qualname__}"))
