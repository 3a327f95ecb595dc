"""manifest.json: what a run is, written before its first step and never again.

It holds all that is needed to read the run's files and to compute it anew: the resolved config, the
formats as data, the ops with the place of their source, the text's sha256, the machine's numeric
fingerprint, and the run that it was forked from.  Its last entry is the sha256 of the rest.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from precsim import __version__
from precsim.engine.context import current
from precsim.engine.policy import Policy
from precsim.engine.precision import FOLLOWING, Accumulator, Precision
from precsim.engine.rule import PHASES
from precsim.engine.tape import OPS
from precsim.formats.registry import AnyFormat, element_of, format
from precsim.observe.trace import shorten
from precsim.runs.config import ConfigError, TrainConfig
from precsim.runs.data import BUILT_IN, Corpus
from precsim.runs.files import DamagedError, RunError, read_file, write_file
from precsim.runs.lines import dump, parse, plain
from precsim.runs.store import MANIFEST, require_run

FORMAT = "precsim-run"
VERSION = 1
"""Version of the directory's layout; a reader of another version says so and reads nothing."""

_LIMIT = 1 << 26


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says.  `start` is the run's first step, 0 unless it is a fork."""

    config: TrainConfig
    start: int
    parent: Mapping[str, Any] | None
    corpus: Mapping[str, Any]
    formats: Mapping[str, Any]
    ops: Mapping[str, Any]
    fingerprint: Mapping[str, Any]


def write_manifest(
    folder: Path,
    config: TrainConfig,
    corpus: Corpus,
    start: int = 0,
    parent: Mapping[str, Any] | None = None,
) -> None:
    """Write the manifest of a run that is about to begin."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.to_dict(),
        "start": start,
        "parent": parent,
        "corpus": describe_corpus(config, corpus),
        "formats": describe_formats(Policy.parse(config.policy)),
        "ops": describe_ops(),
        "fingerprint": fingerprint(),
    }
    write_file(folder / MANIFEST, _encode(content))


def read_manifest(folder: Path) -> Manifest:
    """Return what a run's manifest says.

    Raises `RunError` where there is no run, `DamagedError` where the file is not what was written,
    and either for another version of the layout or a config that this version does not know.
    """
    require_run(folder)
    data = read_file(folder / MANIFEST, _LIMIT)
    try:
        content = parse(data)
    except DamagedError as error:
        msg = f"{MANIFEST}: {error}"
        raise DamagedError(msg) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{MANIFEST} does not say that it is a {FORMAT}"
        raise DamagedError(msg)
    if content.get("version") != VERSION:
        msg = (
            f"{folder} has layout version {content.get('version')!r:.20}; precsim {__version__} "
            f"reads version {VERSION}: try the precsim that wrote it"
        )
        raise RunError(msg)
    content.pop("sha256", None)
    try:
        same = _encode(content) == data
    except ValueError:
        same = False
    if not same:
        msg = f"{MANIFEST} is not what was written: its sha256 differs"
        raise DamagedError(msg)
    names = ("start", "parent", "corpus", "formats", "ops", "fingerprint")
    try:
        config = TrainConfig().change(**content["config"])
        return Manifest(config, **{name: content[name] for name in names})
    except ConfigError as error:
        msg = f"{MANIFEST}: this version of precsim cannot run the config: {error}"
        raise RunError(msg) from None
    except (KeyError, TypeError) as error:
        msg = f"{MANIFEST} lacks an entry: {error}"
        raise DamagedError(msg) from None


def describe_corpus(config: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what tells a text from another, and where its file was."""
    path = None if config.data in BUILT_IN else str(Path(config.data).expanduser().resolve())
    return {
        "name": corpus.name,
        "sha256": corpus.sha256,
        "bytes": len(corpus.train) + len(corpus.valid),
        "vocabulary": corpus.vocabulary_size,
        "path": path,
    }


def describe_formats(policy: Policy) -> dict[str, Any]:
    """Return every format that a policy names, as data."""
    precisions = [getattr(policy, role) for role in PHASES]
    accumulators = [policy.accumulator]
    for rule in policy.rules:
        precisions += rule.precisions
        accumulators.append(rule.accumulator)
    names = {p.format for p in precisions if isinstance(p, Precision)}
    for accumulator in accumulators:
        if isinstance(accumulator, Accumulator):
            names |= {accumulator.format, accumulator.outer}
    return {name: _specification(format(name)) for name in sorted(names - set(FOLLOWING))}


def describe_ops() -> dict[str, Any]:
    """Return the kind of every op, and the file and line where it is written."""
    described = {}
    for name, op in OPS.items():
        code = op.forward.__code__
        described[name] = {
            "kind": op.kind,
            "source": f"{shorten(code.co_filename)}:{code.co_firstlineno}",
        }
    return described


def fingerprint() -> dict[str, Any]:
    """Return all that the bits of a run can depend on besides its config and its text."""
    built: Any = np.show_config(mode="dicts")
    blas = built["Build Dependencies"]["blas"]
    threads = [f"{n}={os.environ[n]}" for n in sorted(os.environ) if n.endswith("_NUM_THREADS")]
    return {
        "precsim": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": blas.get("openblas configuration") or f"{blas.get('name')} {blas.get('version')}",
        "threads": " ".join([*threads, f"of {os.cpu_count()}"]),
        "machine": platform.machine(),
        "cpu": " ".join(built["SIMD Extensions"].get("found", [])),
        "platform": platform.platform(),
        "backend": current().backend,
    }


def _specification(fmt: AnyFormat) -> dict[str, Any]:
    fields = asdict(fmt)
    element = fields.get("element", fields)
    element.pop("note", None)
    return plain(fields | {"max": element_of(fmt).max})  # type: ignore[no-any-return]


def _encode(content: Mapping[str, Any]) -> bytes:
    digest = sha256(dump(content).encode()).hexdigest()
    return (dump(dict(content) | {"sha256": digest}, indent=2) + "\n").encode()
