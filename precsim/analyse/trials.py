"""What a search has tried already, on the disk: beside the run, so that Ctrl-C costs one trial.

Each line of search.jsonl is one trial: which question it belongs to, which sites were high, and the
error then.  A question is told by everything that its answers depend on, the weights and the batch
included, so a line never answers another one.  A line that is damaged, or was cut off, is no answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Self

import numpy as np

from precsim import __version__
from precsim.analyse.moment import Moment
from precsim.analyse.whole_step import WholeStep
from precsim.runs.files import Appender, DamagedError, read_file
from precsim.runs.lines import decode_lines, dump, encode_line
from precsim.runs.npz import Arrays
from precsim.runs.store import LONGEST_FILE, TRIALS

EDITION = 2
"""Counts up when the same question gets another answer; 2: an update may be of a master copy."""


class Trials:
    """Errors by set of site names, for one moment and one wide format; each is kept as it is set.

    Use it as a context, and as the `known` of `precsim.analyse.search.search`.  `fresh`: as if
    nothing had been tried.  Raises `RunError` where the file cannot be written.
    """

    def __init__(self, folder: Path, moment: Moment, to: str = "fp64", *, fresh: bool = False):
        self._question = _digest(_facts(moment, to))
        path = folder / TRIALS
        self._errors = {} if fresh or not path.exists() else _read(path, self._question)
        self.found = len(self._errors)
        self._file = Appender(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def get(self, sites: frozenset[str]) -> float | None:
        """Return the error with these sites high, None where it has not been tried."""
        return self._errors.get(_digest(sorted(sites)))

    def __setitem__(self, sites: frozenset[str], error: float) -> None:
        high = _digest(sorted(sites))
        self._errors[high] = error
        self._file.append(encode_line({"question": self._question, "high": high, "error": error}))


def _read(path: Path, question: str) -> dict[str, float]:
    try:
        lines, _ = decode_lines(read_file(path, LONGEST_FILE))
    except DamagedError:
        return {}
    told = [line for line in lines if not isinstance(line, DamagedError)]
    return {line["high"]: float(line["error"]) for line in told if line["question"] == question}


def _facts(moment: Moment, to: str) -> Iterable[str]:
    """Yield everything that the answers depend on."""
    yield f"precsim {__version__}, edition {EDITION}, high is {to}"
    for name in ("model", "policy", "scale", "weight", "seed", "step"):
        yield f"{name}={getattr(moment, name)}"
    if isinstance(moment, WholeStep):
        yield f"the whole step of {moment.config}"
        yield from _arrays(moment.state)
    for place, history in sorted(moment.delays.items()):
        yield f"{place}={dump(asdict(history))}"
    yield from _arrays({"x": moment.x, "y": moment.y, **moment.parameters})


def _arrays(arrays: Arrays) -> Iterable[str]:
    for name, array in arrays.items():
        yield f"{name}={array.dtype}{array.shape}"
        yield sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _digest(facts: Iterable[str]) -> str:
    return sha256("\n".join(facts).encode()).hexdigest()[:32]
