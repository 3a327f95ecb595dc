"""Small results of a device, gathered in its memory and fetched together.

A program that reads each result as it comes waits for the device each time, and the device for the
program.  So results go to places in one large array, and the first one that is read brings all that
were written before it.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

WORDS = 1 << 20
"""64-bit words that are fetched at once at most (a result of more has an array of its own)."""


class _Page:
    """An array on the device, zeros at first, and what is known of it here."""

    def __init__(self, xp: Any, size: int) -> None:
        self.there = xp.zeros(size, np.uint64)
        self.here: npt.NDArray[np.uint64] = np.zeros(size, np.uint64)
        self.taken = self.known = 0

    def read(self, first: int, last: int) -> npt.NDArray[np.uint64]:
        if last > self.known:
            taken = self.taken
            self.here[self.known : taken] = self.there[self.known : taken].get()
            self.known = taken
        return self.here[first:last]


class Place(NamedTuple):
    """Where a result is: `there` on the device, to be written once, before anybody reads."""

    page: _Page
    first: int
    last: int

    @property
    def there(self) -> Any:
        """The words on the device, zero at first."""
        return self.page.there[self.first : self.last]

    def read(self) -> npt.NDArray[np.uint64]:
        """Return the words; the first to be read brings those of all places before."""
        return self.page.read(self.first, self.last)


class Ledger(threading.local):
    """Hands out places, from one page after the other; each thread has pages of its own."""

    page: _Page | None = None

    def place(self, xp: Any, words: int) -> Place:
        """Return a new place for so many 64-bit words, on the device of module `xp`."""
        page = self.page
        if page is None or page.taken + words > page.there.size:
            page = self.page = _Page(xp, max(WORDS, words))
        first = page.taken
        page.taken += words
        return Place(page, first, page.taken)
