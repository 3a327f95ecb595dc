"""How time, memory and traces grow: ``python -m tests.benchmarks.growth [--quick]``.

A small GPT, e4m3 in fast arithmetic, doubled in one way at a time: width, layers, context, batch,
and length of the run.  A ratio says what doubling costs.  What is linear must not cost much more
than 2, width and context (the products of matrices, and attention) not much more than 4, and a step
of a long run no more than one of a short run.  Then a model of 10 million parameters takes a step.
"""

import importlib.util
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.measure import medians, one_thread, peak_memory, row, used_by, write_table

one_thread()


import precsim as ps
from precsim.runs.store import read_index
from tests.benchmarks.step import Model, stepper

FORMAT = "e4m3"
START = ps.GPTConfig(layers=2, heads=4, width=64, context=64, vocabulary=128)
BATCH = 8
LINEAR, SQUARE, CONSTANT = 2.4, 4.4, 1.2
"""Most that a doubling may cost: a tenth or a fifth more than twice, four times and nothing."""
LIMITS = {"layers": LINEAR, "batch": LINEAR, "width": SQUARE, "context": SQUARE}
LARGE = ps.GPTConfig(layers=8, heads=8, width=320, context=128, vocabulary=256)
LARGE_BATCH = 4


def doubled(what, times):
    """Return (sizes of the model, batch) with one of them doubled so many times."""
    if what == "batch":
        return START, BATCH << times
    return replace(START, **{what: getattr(START, what) << times}), BATCH


def size_rows(doublings, turns):
    """Double each size of the model, and the batch."""
    for what, limit in LIMITS.items():
        sizes = [doubled(what, times) for times in range(doublings + 1)]
        functions = {i: Model(FORMAT, "fast", *size).step for i, size in enumerate(sizes)}
        seconds = medians(functions, turns)
        peaks = [peak_memory("tests.benchmarks.growth", what, i) for i in functions]
        for i in range(1, len(sizes)):
            before, after = (getattr(START, what, BATCH) << j for j in (i - 1, i))
            case, half = f"{what} {before} to {after}", f"{what} {before}"
            yield row("growth of time", case, FORMAT, seconds[i], peer=half,
                      against=seconds[i - 1], limit=limit)  # fmt: skip
            yield row("growth of memory", case, FORMAT, peaks[i], "bytes", peer=half,
                      against=peaks[i - 1], limit=limit)  # fmt: skip


def run_rows(steps):
    """Double the length of a recorded run: a step's time, the memory, and its trace on the disk."""
    config = ps.TrainConfig(
        **ps.recipe("bf16").settings(), layers=1, width=32, context=32, batch=4, observe="hist",
        steps=4 * steps, checkpoint_every=10**6, eval_every=10**6,
    )  # fmt: skip
    case = f"{2 * steps} to {4 * steps} steps"
    with tempfile.TemporaryDirectory() as where:
        found = [
            _recorded(config.change(steps=n), Path(where, str(n))) for n in (2 * steps, 4 * steps)
        ]
    for name, unit, short, long in zip(
        ("time", "trace"), ("seconds", "bytes"), *found, strict=True
    ):
        yield row(f"growth of {name}", case, "bf16", long, unit,
                  peer=f"{2 * steps} steps", against=short, limit=CONSTANT)  # fmt: skip
    peaks = [peak_memory("tests.benchmarks.growth", "steps", n) for n in (steps, 2 * steps)]
    yield row("growth of memory", f"{steps} to {2 * steps} steps", FORMAT, peaks[1], "bytes",
              peer=f"{steps} steps", against=peaks[0], limit=CONSTANT)  # fmt: skip


def _recorded(config, folder):
    """Return the seconds and the bytes of trace that a step of a recorded run takes."""
    start = time.process_time()
    ps.train(config, out=folder)
    seconds = (time.process_time() - start) / config.steps
    kinds = [e.bytes for e in read_index(folder).entries.values() if e.kind != "ckpt"]
    return seconds, sum(kinds) / config.steps


def large_rows(turns):
    """Train a model of 10 million parameters for a few steps, beside PyTorch with casts."""
    ours = Model(FORMAT, "fast", LARGE, LARGE_BATCH)
    functions, peaks = {"fast": ours.step}, {"fast": peak_memory("tests.benchmarks.growth", "fast")}
    if importlib.util.find_spec("torch"):
        functions["torch + casts"] = stepper("torch", FORMAT, LARGE, LARGE_BATCH)
        peaks["torch + casts"] = peak_memory("tests.benchmarks.growth", "torch")
    seconds = medians(functions, turns)
    case = f"{ours.model.size / 1e6:.2f} M parameters"
    for found, unit in ((seconds, "seconds"), (peaks, "bytes")):
        yield row("a large model", case, FORMAT, found["fast"], unit, peer="torch + casts",
                  against=found.get("torch + casts"))  # fmt: skip


def rows(quick: bool) -> list[dict]:
    """Measure and return plain rows; `quick` doubles once, not twice, and takes fewer turns."""
    doublings, turns, steps = (1, 3, 20) if quick else (2, 9, 60)
    parts = (size_rows(doublings, turns), run_rows(steps), large_rows(2 if quick else 5))
    return [found for part in parts for found in part]


def used(what, number):
    """Return by how many bytes this process grows while a model takes a few steps."""
    Model(FORMAT, "fast", replace(START, layers=1, width=8, context=8), 1).step()
    if what in ("fast", "torch"):
        return used_by(
            lambda: [
                step() for step in [stepper(what, FORMAT, LARGE, LARGE_BATCH)] for _ in range(2)
            ]
        )
    sizes, steps = ((START, BATCH), number) if what == "steps" else (doubled(what, number), 3)
    return used_by(
        lambda: [step() for step in [Model(FORMAT, "fast", *sizes).step] for _ in range(steps)]
    )


def main(arguments):
    """Print the rows; or, given what is doubled and how often, the peak memory."""
    if arguments and arguments[0] != "--quick":
        number = int(arguments[1]) if len(arguments) > 1 else 0
        sys.stdout.write(f"{used(arguments[0], number)}\n")
    else:
        write_table(rows("--quick" in arguments), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
