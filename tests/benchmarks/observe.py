"""What watching costs: ``python -m tests.benchmarks.observe [--quick | --steps 12 --recipe bf16]``.

`rows` has the step of `step.py` at each level, its seconds and how many times one takes that nobody
watches ("tensors" keeps the gradients in memory, and has no limit): with NumPy alone, and in fast arithmetic with compiled kernels, where Numba is installed.  With
`--steps` a run is recorded at each level instead: hashes are computed beside it, in a thread, so
that its times are the processor's and the clock's, and the last columns are what a step's ops leave
on the disk, and how long it takes to write the ops of the run and a checkpoint.

All levels take turns in one process, step by step, with one thread of the BLAS; times are medians.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.measure import medians, one_thread, row, write_table

one_thread()

import numpy as np

import precsim as ps
from precsim.observe.trace import LEVELS, Level, Tracer
from precsim.runs.data import load
from precsim.runs.interrupt import Interruption
from precsim.runs.lock import Lock
from precsim.runs.loop import make_record, surroundings
from precsim.runs.manifest import write_manifest
from precsim.runs.recorder import Recorder
from precsim.runs.results import Run
from precsim.runs.store import Store, read_index
from precsim.runs.trainer import make_trainer
from tests.benchmarks.step import Model

LIMITS = {"off": 1.05, "counts": 1.3, "hist": 1.3, "shadow": 3.0}
"""Most time of a step that is watched, as a multiple of one that is not; "off" is noise alone."""

PATTERN = "gradients/*"
"""What the level "tensors" keeps here: all gradients of activations."""


class Watched:
    """A run that is done one step at a time, and timed; `folder` None: in memory, nobody looks."""

    def __init__(self, level, config, corpus, folder):
        pattern = f":{PATTERN}" if level == "tensors" else ""
        self.config = config.change(observe=level + pattern)
        self.tracer = Tracer(Level.parse(self.config.observe))
        self.observers = (self.tracer,) if level != "off" else ()
        with surroundings(self.config, self.observers):
            self.trainer = make_trainer(self.config, corpus)
        self.tracer.drain()
        self.run = Run(self.config, corpus, self.trainer.model)
        self.recorder = None
        self.times = []
        if folder is not None:
            self.lock = Lock(folder).__enter__()
            write_manifest(folder, self.config, corpus)
            store = Store(folder)
            self.recorder = Recorder(store, self.run, self.trainer, 0, Interruption(active=False))

    def step(self, step):
        start, clock = time.process_time(), time.perf_counter()
        with surroundings(self.config, self.observers):
            with ps.using(step=step):
                result = self.trainer.step(step)
            trace = self.tracer.drain()
            record = make_record(step, result, trace)
            self.run.note(record, trace.rows, self.trainer.policy)
            if self.recorder:
                self.recorder.step(record, trace)
        self.times.append((time.process_time() - start, time.perf_counter() - clock))


def measure(config, steps):
    corpus = load(config.data)
    with tempfile.TemporaryDirectory() as where:
        runs = {"alone": Watched("off", config, corpus, None)}
        runs |= {level: Watched(level, config, corpus, Path(where, level)) for level in LEVELS}
        for step in range(steps):
            for run in runs.values():
                run.step(step)
        levels = []
        for name, run in runs.items():
            cpu, clock = np.median(run.times[2:], axis=0) * 1e3
            found = {"level": name, "cpu": cpu, "clock": clock, "ops": 0, "checkpoint": 0}
            if run.recorder:
                start = time.perf_counter()
                run.recorder.finish()
                found["commit"] = (time.perf_counter() - start) * 1e3
                for entry in read_index(Path(where, name)).entries.values():
                    if entry.kind == "ckpt":
                        found["checkpoint"] = entry.bytes
                    else:
                        found["ops"] += entry.bytes / steps
            levels.append(found)
    return levels


def rows(quick: bool) -> list[dict]:
    """Measure and return plain rows."""
    found = []
    tiers = {"fast": "numpy", "exact": "numpy"}
    if importlib.util.find_spec("numba"):
        tiers["compiled"] = "numba"
    for fmt in ("e4m3",) if quick else ("e4m3", "bf16"):
        for case, kernels in tiers.items():
            arithmetic = "fast" if case == "compiled" else case
            functions = {"nobody": Model(fmt, arithmetic, tier=kernels).step}
            functions |= {level: watched_step(level, fmt, arithmetic, kernels) for level in LEVELS}
            t = medians(functions, 5 if quick else 21)
            found += [
                row("observation", f"{level}, {case}", fmt, t[level], peer="nobody",
                    against=t["nobody"], limit=LIMITS.get(level))
                for level in LEVELS
            ]  # fmt: skip
    return found


def watched_step(level, fmt, arithmetic, kernels):
    """Return a function that does one step at a level, without hashes."""
    pattern = f":{PATTERN}" if level == "tensors" else ""
    tracer = Tracer(Level.parse(level + pattern), hashes=False)
    observers = (tracer,) if level != "off" else ()
    model = Model(fmt, arithmetic, observers=observers, tier=kernels)
    return lambda: (model.step(), tracer.drain())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--recipe", default="bf16")
    given = parser.parse_args()
    if given.steps is None:
        write_table(rows(given.quick), sys.stdout)
        return
    config = ps.TrainConfig(
        **ps.recipe(given.recipe).settings(), steps=10**6, checkpoint_every=10**6, eval_every=10**6
    )
    levels = measure(config, given.steps)
    say = sys.stdout.write
    say(f"{given.recipe}: {config.layers} layers, width {config.width}, batch {config.batch}\n")
    say("level        CPU ms  ratio   clock ms  ratio   trace, kB a step   commit, ms\n")
    for found in levels:
        cpu, clock = found["cpu"] / levels[0]["cpu"], found["clock"] / levels[0]["clock"]
        say(f"{found['level']:<10}{found['cpu']:>9.1f}{cpu:>7.2f}")
        say(f"{found['clock']:>11.1f}{clock:>7.2f}")
        say(f"{found['ops'] / 1e3:>19.1f}{found.get('commit', 0):>13.0f}\n")
    say(f"a checkpoint has {levels[-1]['checkpoint'] / 1e6:.1f} MB; tensors keeps {PATTERN}\n")


if __name__ == "__main__":
    main()
