"""What a run comes to: a record of each step, the counts of its ops, the first trouble, the model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isnan
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from precsim.engine.context import using
from precsim.engine.policy import Policy
from precsim.nn.gpt import GPT
from precsim.observe.counters import OpCounts
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus, DataError
from precsim.runs.pretrained import save_weights
from precsim.runs.schedule import difference

LAST = 20
"""Steps at a run's end whose mean training loss stands for the run: one step alone is noise."""


class Columns(dict[str, np.ndarray]):
    """Numbers of the steps by name; a name that is none raises a `KeyError` that lists them."""

    def __missing__(self, name: str) -> np.ndarray:
        msg = f"no column {name!r}: expected one of {', '.join(self)}"
        raise KeyError(msg)

    def __repr__(self) -> str:
        steps = len(next(iter(self.values()), ()))
        return f"Columns({steps} steps: {', '.join(self)})"


def step_number(step: object) -> int:
    """Return the number of a step as a plain one; raises `TypeError` for what is not whole."""
    if isinstance(step, Integral):
        return int(step)
    msg = f"expected the number of a step, such as 137; got {step!r}"
    raise TypeError(msg)


@dataclass(frozen=True)
class StepRecord:
    """What one step did.  Losses are means in nats; `scale` is the loss scale that the step used.

    `skipped`: the scaler found a gradient that is not finite.  `flushed`: share of the nonzero
    results of backward ops that became zero.  `lost_updates`: share of the nonzero weight updates
    that changed nothing; both NaN where no op was observed.  `valid_loss` is None on the steps
    between evaluations.  `change` is the policy from the next step on, "" where it stays.
    """

    step: int
    loss: float
    valid_loss: float | None
    lr: float
    scale: float
    skipped: bool
    grad_norm: float
    flushed: float
    lost_updates: float
    change: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> StepRecord:
        """Read what `to_dict` gave, with NaN and infinities spelled as text.

        Raises `ValueError` for other entries, or values that are no numbers.
        """
        kinds = {f.name: str(f.type) for f in fields(cls)}
        if entry.keys() != kinds.keys():
            msg = f"expected the entries {', '.join(kinds)}; got {', '.join(entry)}"
            raise ValueError(msg)
        values: dict[str, Any] = {
            name: float(value) if kinds[name].startswith("float") and value is not None else value
            for name, value in entry.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class Change:
    """A change of policy: the first step under `after`, and the record of the step before it."""

    step: int
    before: Policy
    after: Policy
    record: StepRecord

    def __str__(self) -> str:
        record = self.record
        seen = f"validation loss {record.valid_loss:.4g}" if record.valid_loss is not None else ""
        if not isnan(record.flushed):
            seen += f", {record.flushed:.0%} flushed, {record.lost_updates:.0%} of updates lost"
        return f"step {self.step} ({seen}): {difference(self.before, self.after)}"


@dataclass(frozen=True)
class Trouble:
    """The first op whose rounding did harm, and what kind."""

    step: int
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path} at step {self.step}: {self.what}"


RECORDED = ("at", "checkpoints", "fork", "manifest", "ops", "path", "replay", "tensors")
"""What a run has only if it was recorded."""


@dataclass(repr=False)
class Run:
    """A run that is over, or was interrupted: its config, its records, its model.

    `records` has a `StepRecord` for each step (`steps`: the same as columns), `counts` what rounding
    did to the results of each role, all steps together.  `trouble` is the first op that rounding
    harmed, `died_at` the step after which weights were no longer finite; None where nothing was.
    One with a directory, as ``train(config, out=DIR)`` and `precsim.open` return it, also has its
    ops, step by step (`precsim.runs.run.StoredRun`).
    """

    config: TrainConfig
    corpus: Corpus
    model: GPT
    records: list[StepRecord] = field(default_factory=list)
    counts: dict[str, OpCounts] = field(default_factory=dict)
    trouble: Trouble | None = None
    died_at: int | None = None

    def __repr__(self) -> str:
        end = "" if self.died_at is None else f", its weights not finite after step {self.died_at}"
        steps = f"{len(self.records)} step{'s' * (len(self.records) != 1)}"
        return f"Run({steps} on {self.config.data!r}, not recorded{end})"

    if not TYPE_CHECKING:  # for which a run has its own attributes only

        def __getattr__(self, name: str) -> Any:
            """Say of what only a run in a directory has (`precsim.runs.run.StoredRun`) how to have it."""
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in RECORDED:
                msg = f"only a recorded run has {name!r}: train(config, out=DIR) records one"
            raise AttributeError(msg, name=name, obj=self)

    @property
    def vocabulary(self) -> int:
        """Number of letters of the text."""
        return self.corpus.vocabulary_size

    def note(self, record: StepRecord, rows: list[OpCounts], policy: Policy) -> None:
        """Take in what one more step did."""
        self.records.append(record)
        for row in rows:
            self.counts.setdefault(row.role, OpCounts(role=row.role, phase=row.phase)).add(row)
        if self.trouble is None:
            self.trouble = first_trouble(rows, policy, skipped=record.skipped)

    @property
    def steps(self) -> Columns:
        """The records' numbers as columns: ``run.steps["loss"]`` (None becomes NaN)."""
        names = [name for name in StepRecord.__dataclass_fields__ if name != "change"]
        return Columns({
            name: np.array([getattr(r, name) for r in self.records], dtype=float)
            if name != "skipped"
            else np.array([r.skipped for r in self.records])
            for name in names
        })  # fmt: skip

    @property
    def changes(self) -> list[Change]:
        """The changes of policy that a precision schedule made, in order."""
        found: list[Change] = []
        policy = Policy.parse(self.config.policy)
        for record in self.records:
            if record.change:
                after = Policy.parse(record.change)
                found.append(Change(record.step + 1, policy, after, record))
                policy = after
        return found

    @property
    def policy(self) -> Policy:
        """The policy in force after the last step."""
        changes = self.changes
        return changes[-1].after if changes else Policy.parse(self.config.policy)

    def policy_at(self, step: int) -> Policy:
        """Return the policy that was in force in a step."""
        before = [change.after for change in self.changes if change.step <= step]
        return before[-1] if before else Policy.parse(self.config.policy)

    def final_loss(self, last: int = LAST) -> float:
        """Return the mean training loss of the last steps; NaN once the weights are destroyed."""
        if not self.records or self.died_at is not None:
            return float("nan")
        return float(np.mean([r.loss for r in self.records[-last:]]))

    def valid_loss(self) -> float:
        """Return the last validation loss; NaN once the weights are destroyed."""
        measured = [r.valid_loss for r in self.records if r.valid_loss is not None]
        return measured[-1] if measured and self.died_at is None else float("nan")

    def save(self, path: str | os.PathLike[str], names: str = "precsim") -> None:
        """Write the weights as a .safetensors file, which another run can start from (`init`).

        `names` is "precsim" or "gpt2".  Raises `RunError` where it cannot be written.
        """
        save_weights(path, self.model, self.corpus.alphabet, names)

    def sample(self, length: int = 80, temperature: float = 0.7, prompt: str = "") -> str:
        """Return the text with which the model goes on after `prompt`.

        No prompt means the first bytes of the validation text.  Raises `DataError` for a prompt
        with a byte that the text does not have.
        """
        ids = np.array([self.corpus.alphabet.find(byte) for byte in prompt.encode()], np.int64)
        if (ids < 0).any():
            msg = f"the prompt {prompt!r} has letters that {self.corpus.name!r} has not"
            raise DataError(msg)
        if not len(ids):
            ids = self.corpus.valid[:16].astype(np.int64)
        with using(self.policy, seed=self.config.seed):
            tokens = self.model.generate(ids, length, self.config.seed, temperature)
        return self.corpus.decode(tokens[len(ids) :])


def first_trouble(rows: list[OpCounts], policy: Policy, *, skipped: bool = False) -> Trouble | None:
    """Return the first op of a step whose rounding did harm, or None.

    A result that is no number before rounding (x / eps, where eps has become 0) is harm, too.
    Passed over: overflow behind the forward pass of a step that the scaler skipped, which is how it
    finds its scale; what stochastic rounding flushes or loses, which comes back on average; and ops
    that make less than 1 % of their role's values (a bias, a norm's gain): true, but not decisive.
    """
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row.role] += row.n
    for row in rows:
        if not skipped or row.phase == "forward":
            if row.overflowed:
                return Trouble(row.step, row.path, f"{row.overflowed} of {row.n} overflowed")
            if row.nonfinite_in:
                return Trouble(row.step, row.path, f"{row.nonfinite_in} of {row.n} not finite")
        what = _loss_of_most(row) if row.n >= sizes[row.role] / 100 else ""
        if what and not row.precision(policy).by_chance:
            return Trouble(row.step, row.path, what)
    return None


def _loss_of_most(row: OpCounts) -> str:
    """Say whether rounding took most of an op's results, or most of the updates."""
    if row.flushed_share > 0.5:
        return f"{row.flushed_share:.0%} flushed to zero"
    if row.swamped_share > 0.5:
        return f"{row.swamped_share:.0%} of the updates lost"
    return ""
