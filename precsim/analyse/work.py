"""What one training step computes and moves, op by op and by format: counts, not times.

Nothing here reads a policy.  One step is run, and every op that the engine tells of is counted at
the formats that its operands and its result lie on.  How:

- A *multiply-accumulate* (MAC) is one product of a matmul and its addition to the running sum:
  batch x M x N x K of them, exactly.  Sums are kept in the recipe's accumulator; where it has none,
  in fp32, those of integers in int32.
- Where operands share scales, every run of products with the same scales has a sum of its own: it is
  multiplied with them and added to the rest in fp32, once for each run.  A tensor's scale makes one
  run of a whole sum, blocks of 32 make one of every 32 products.  Where each product has another
  scale (a scale a row, in an operand whose rows are what is summed over), none can be added before.
- Everything else, a cast included, is one operation for each value of its largest operand, or of its
  result if that is larger: in the widest of its formats, or in fp32 where values share a scale.
- Each op reads every operand once and writes its result once, at the width of their formats, shared
  scales included (`precsim.formats.storage`).  What the program knows (constants, masks, tokens)
  takes nothing, and so do ops that only move values: views, slices, and rows of an embedding.

What is not counted: what an op needs only inside itself, exponents and tables of functions, finding
the largest value of a block, random words.  Of 8-bit optimizer states the values are counted in the
format in which they are computed with.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NamedTuple

from precsim.backend.compiled import Tier, tier
from precsim.engine.context import using
from precsim.engine.dispatch import Event
from precsim.formats.registry import AnyFormat, element_of, format
from precsim.formats.scaled import ALL, Scaled
from precsim.formats.storage import stored_bytes
from precsim.nn.scaling import DynamicScale
from precsim.runs.config import TrainConfig
from precsim.runs.data import Corpus
from precsim.runs.trainer import make_trainer

WIDE, WIDE_INTEGER = "fp32", "int32"
"""Formats of sums where a recipe has no accumulator: of floats, and of integers."""

Names = tuple[str, ...]


class Arithmetic(NamedTuple):
    """A kind of operation: what it does, "multiply" or "add", in which formats, and for what.

    `of` has the formats of a matmul's two operands, of which the operation is a part, or the one of
    another op; `at` those in which it is done.
    """

    does: str
    at: Names
    of: Names


@dataclass
class Work:
    """What an op did in one phase of a step: how often of each kind, and bytes by format.

    `macs` are counted by the formats of both operands, wider first; `operand_bits` is the sum over
    them of the mean width of the two, their share of the scales included.  `alone` are those whose
    products have a scale each, so that nothing can be added before it is multiplied with it.
    """

    phase: str
    op: str
    macs: Counter[Names] = field(default_factory=Counter)
    arithmetic: Counter[Arithmetic] = field(default_factory=Counter)
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    operand_bits: float = 0.0
    alone: int = 0

    def add(self, event: Event) -> None:
        """Count one run of the op."""
        for x, fmt in zip(event.inputs, event.input_formats, strict=True):
            if fmt is not None:
                self.read[_name(fmt)] += stored_bytes(fmt, x.shape)
        self.written[_name(event.format)] += stored_bytes(event.format, event.rounded.shape)
        if event.kind == "matmul":
            self._add_products(event)
        else:
            self._add_operations(event)

    def _add_operations(self, event: Event) -> None:
        known = [fmt for fmt in (event.format, *event.input_formats) if fmt is not None]
        widest = max((element_of(fmt) for fmt in known), key=lambda e: (e.precision, e.bits))
        at = (WIDE if any(isinstance(fmt, Scaled) for fmt in known) else widest.name,)
        size = max(event.rounded.size, *(x.size for x in event.inputs))
        self.arithmetic[Arithmetic("multiply", at, at)] += size

    def _add_products(self, event: Event) -> None:
        shapes = [x.shape for x in event.inputs[:2]]
        formats = [fmt or event.format for fmt in event.input_formats[:2]]
        elements = sorted(map(element_of, formats), key=lambda e: (-e.bits, e.name))
        of = tuple(element.name for element in elements)
        results, length = event.rounded.size, shapes[0][-1]
        macs = results * length
        self.macs[of] += macs
        widths = [8 * stored_bytes(f, s) / max(x.size, 1)
                  for f, s, x in zip(formats, shapes, event.inputs, strict=False)]  # fmt: skip
        self.operand_bits += macs * sum(widths) / 2
        run = min(length, run_along(formats[0], -1, length), run_along(formats[1], -2, length))
        self.alone += macs if run == 1 < length else 0
        unit = event.accumulator
        piece = min(run, unit.chunk or length) if unit else run
        pieces = ceil(length / piece) if length else 0
        wide = max((format(WIDE), *elements), key=lambda e: element_of(e).precision).name
        inner, outer = wide, unit.outer if unit and unit.chunk else wide
        if unit is not None:
            inner = unit.format
        elif piece > 1 and all(element.is_integer for element in elements):
            inner = WIDE_INTEGER

        def did(does: str, at: Names, times: int) -> None:
            if times:
                self.arithmetic[Arithmetic(does, at, of)] += times

        did("multiply", of, macs)
        did("add", (inner,), macs if piece > 1 or pieces == 1 else 0)
        if any(isinstance(fmt, Scaled) for fmt in formats):
            did("multiply", (WIDE,), results * (ceil(length / run) if length else 0))
        did("add", (outer,), results * pieces if pieces > 1 else 0)
        did("add", (wide,), results * (len(event.inputs) - 2))  # the bias of a linear layer


def run_along(fmt: AnyFormat, axis: int, length: int) -> int:
    """Return how many neighbours along an axis of a matrix (-1 or -2) have the same scale.

    `length` where all have, or where there is no scale; 1 where each has its own.
    """
    if not isinstance(fmt, Scaled) or fmt.block.height == ALL:
        return length
    block = fmt.block
    if block.height > 1:
        return block.width if axis == -1 else block.height
    return (block.width or length) if block.axis == axis else 1


def work(config: TrainConfig, corpus: Corpus) -> list[Work]:
    """Return what one step of a run does, the optimizer included, by phase and op in their order.

    It is the second step: the optimizer's state is then in its own format.  No loss scale skips it.
    Of `micro_batches` one is computed, and counted.  Nothing is kept of what is trained.
    Raises what `precsim.train` raises where the config and the text do not fit.
    """
    with tier(Tier.NUMPY):  # to compile kernels would take longer than two steps
        return _work(config, corpus)


def _work(config: TrainConfig, corpus: Corpus) -> list[Work]:
    with using(config.policy, seed=config.seed, observers=()):
        trainer = make_trainer(config, corpus)
    if isinstance(trainer.scaler, DynamicScale):
        trainer.scaler = replace(trainer.scaler, skips=False, minimum=0.0, at_minimum="clamp")
    found: dict[tuple[str, str], Work] = {}

    def note(event: Event) -> None:
        place = event.phase, event.op
        if place not in found:
            found[place] = Work(*place)
        found[place].add(event)

    for step, observers in enumerate(((), (note,))):
        with using(
            trainer.policy, seed=config.seed, step=step, delays=trainer.delays, observers=observers
        ):
            trainer.update(step)
    return list(found.values())


def _name(fmt: AnyFormat) -> str:
    """Return what a format's values are counted under: its elements, whatever scales they share."""
    return element_of(fmt).name
