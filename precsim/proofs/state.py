"""What a sweep has proved so far, in a small JSON file, so that it can stop and go on.

A proof is about a piece of code.  The file carries a fingerprint of the modules that were proved
and of the method that proved them; with any of them changed, what was done before counts for
nothing and the sweep starts again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from precsim.formats import arrays, format, kernels, modes, quantize, stochastic
from precsim.proofs import exhaustive, tables
from precsim.proofs.exhaustive import CHUNK, Case, Mismatch

_MODULES = (arrays, format, kernels, modes, quantize, stochastic, tables, exhaustive)


@dataclass
class Progress:
    """How far one case has come."""

    chunks: int = 0
    seconds: float = 0.0
    mismatch: Mismatch | None = None

    @property
    def inputs(self) -> int:
        """Inputs compared so far."""
        return self.chunks * CHUNK


@dataclass
class State:
    """Progress of every case that was begun, by its name; `path` None keeps it in memory."""

    path: Path | None = None
    done: dict[str, Progress] = field(default_factory=dict)
    restarted: bool = False
    """Whether a file was there, but about other code."""

    def of(self, case: Case) -> Progress:
        """Return the progress of a case, from nothing if it was not begun."""
        return self.done.setdefault(str(case), Progress())

    def save(self) -> None:
        """Write the file in one step: whoever reads it, or dies meanwhile, sees old or new."""
        if self.path is None:
            return
        content = {
            "fingerprint": fingerprint(),
            "numpy": np.__version__,
            "cases": {name: asdict(progress) for name, progress in self.done.items()},
        }
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def load(path: Path | None) -> State:
    """Read a state file; a missing one, and one about other code, gives an empty state.

    Raises `ValueError` for a file that is no state file: it is not overwritten.
    """
    if path is None or not path.exists():
        return State(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        same = content["fingerprint"] == fingerprint() and content["numpy"] == np.__version__
        done = {name: _progress(fields) for name, fields in content["cases"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{path} is not a state file of precsim verify: name another, or remove it"
        raise ValueError(msg) from error
    return State(path, done) if same else State(path, restarted=True)


def _progress(fields: dict[str, object]) -> Progress:
    found = fields["mismatch"]
    mismatch = Mismatch(**found) if isinstance(found, dict) else None
    return Progress(int(str(fields["chunks"])), float(str(fields["seconds"])), mismatch)


def fingerprint() -> str:
    """Return the SHA-256 of the sources of the code proved and of the code that proves it."""
    digest = hashlib.sha256()
    for module in _MODULES:
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
