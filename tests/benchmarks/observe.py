"""What watching costs: one step at each level, recorded, as a multiple of one that nobody watches.

    python tests/benchmarks/observe.py [--steps 12] [--recipe bf16]

All levels take turns in one process, step by step, with one BLAS thread; times are medians, of the
processor (a busy machine does not count) and of the clock (hashes are computed beside the run).
The last columns are what a step's ops leave on the disk, and how long it takes to write the ops of
the run and a checkpoint.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

for library in ("OPENBLAS_NUM", "OMP_NUM", "MKL_NUM"):
    os.environ.setdefault(f"{library}_THREADS", "1")

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
        rows = []
        for name, run in runs.items():
            cpu, clock = np.median(run.times[2:], axis=0) * 1e3
            row = {"level": name, "cpu": cpu, "clock": clock, "ops": 0, "checkpoint": 0}
            if run.recorder:
                start = time.perf_counter()
                run.recorder.finish()
                row["commit"] = (time.perf_counter() - start) * 1e3
                for entry in read_index(Path(where, name)).entries.values():
                    if entry.kind == "ckpt":
                        row["checkpoint"] = entry.bytes
                    else:
                        row["ops"] += entry.bytes / steps
            rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--recipe", default="bf16")
    given = parser.parse_args()
    config = ps.TrainConfig(
        **ps.recipe(given.recipe).settings(), steps=10**6, checkpoint_every=10**6, eval_every=10**6
    )
    rows = measure(config, given.steps)
    say = sys.stdout.write
    say(f"{given.recipe}: {config.layers} layers, width {config.width}, batch {config.batch}\n")
    say("level        CPU ms  ratio   clock ms  ratio   trace, kB a step   commit, ms\n")
    for row in rows:
        cpu, clock = row["cpu"] / rows[0]["cpu"], row["clock"] / rows[0]["clock"]
        say(f"{row['level']:<10}{row['cpu']:>9.1f}{cpu:>7.2f}{row['clock']:>11.1f}{clock:>7.2f}")
        say(f"{row['ops'] / 1e3:>19.1f}{row.get('commit', 0):>13.0f}\n")
    say(f"a checkpoint has {rows[-1]['checkpoint'] / 1e6:.1f} MB; tensors keeps {PATTERN}\n")


if __name__ == "__main__":
    main()
