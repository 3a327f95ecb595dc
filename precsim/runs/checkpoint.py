"""A checkpoint: everything that the next step depends on, as arrays, and back again.

That is the weights, the optimizer's state and its count of steps, the loss scale and its count of
clean steps, the factors and amax histories of delayed scaling, the policy in force and the
validation losses that a schedule reads, each to the bit.  Batches and random numbers need nothing:
they are functions of the seed and the step.  What the run has counted so far comes along, so that
its totals go on, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from precsim.backend import array_module, to_numpy
from precsim.engine.delayed import AmaxHistory, Delays
from precsim.engine.policy import Policy
from precsim.engine.tensor import Tensor
from precsim.formats.registry import format
from precsim.observe.counters import COUNTS, OpCounts
from precsim.runs.files import DamagedError
from precsim.runs.npz import Arrays
from precsim.runs.trainer import Trainer

_MEASURES = ("amax", "amin", "square", "error")


def capture(trainer: Trainer, step: int, counts: Mapping[str, OpCounts]) -> Arrays:
    """Return the state before `step`, and the counts by role of the steps until then."""
    tensors = {f"weights/{name}": p for name, p in trainer.model.parameters.items()}
    for slot, states in trainer.optimizer.state.items():
        tensors |= {f"state/{slot}/{name}": state for name, state in states.items()}
    formats = [tensor.format.name if tensor.format else "" for tensor in tensors.values()]
    scaler = {f"scaler/{name}": np.array(value) for name, value in asdict(trainer.scaler).items()}
    return {
        "step": np.array(step),
        "policy": np.array(str(trainer.policy)),
        "valid_losses": np.array(trainer.valid_losses, float),
        "heads": np.array(trainer.model.config.heads),
        "alphabet": np.frombuffer(trainer.batches.corpus.alphabet, np.uint8),
        "optimizer/steps": np.array(trainer.optimizer.steps),
        **scaler,
        **_delays_to_arrays(trainer.delays),
        "tensors": np.array(list(tensors), np.str_),
        "formats": np.array(formats, np.str_),
        **{name: to_numpy(tensor.data) for name, tensor in tensors.items()},
        **_totals_to_arrays(counts),
    }


def restore(trainer: Trainer, arrays: Arrays) -> None:
    """Bring a trainer of the same config to the state that `capture` saw.

    Raises `DamagedError` if the arrays are not that of such a trainer: another name or shape.
    """
    try:
        states = _tensors(trainer, arrays)
        fields = {name: arrays[f"scaler/{name}"].item() for name in asdict(trainer.scaler)}
        steps = int(arrays["optimizer/steps"])
        trainer.policy = Policy.parse(arrays["policy"].item())
        trainer.valid_losses = tuple(arrays["valid_losses"].tolist())
        trainer.delays = _delays(arrays)
    except (KeyError, ValueError) as error:
        msg = f"the checkpoint does not fit the config: {error}"
        raise DamagedError(msg) from None
    for name, parameter in trainer.model.parameters.items():
        stored = states.pop(f"weights/{name}")
        parameter.data, parameter.format = stored.data, stored.format
    optimizer = trainer.optimizer
    optimizer.steps = steps
    optimizer.state = {slot: {} for slot in optimizer.slots}
    for name, state in states.items():
        _, slot, parameter_name = name.split("/", 2)
        optimizer.state[slot][parameter_name] = state
    trainer.scaler = replace(trainer.scaler, **fields)


def _tensors(trainer: Trainer, arrays: Arrays) -> dict[str, Tensor]:
    """Return the stored tensors by name, on the trainer's device, checked against its model.

    An optimizer's state may have any shape; a weight has its own.
    """
    shapes = {name: parameter.shape for name, parameter in trainer.model.parameters.items()}
    some = next(iter(trainer.model.parameters.values()))
    xp = array_module(some.data)
    found = {}
    for name, fmt in zip(arrays["tensors"].tolist(), arrays["formats"].tolist(), strict=True):
        array, (kind, _, rest) = arrays[name], name.partition("/")
        slot, _, parameter = rest.partition("/") if kind == "state" else ("", "", rest)
        known = kind == "weights" or (kind == "state" and slot in trainer.optimizer.slots)
        if not known or array.shape != shapes.get(parameter):
            msg = (
                f"{name} of shape {array.shape}; expected {shapes.get(parameter, 'no such tensor')}"
            )
            raise ValueError(msg)
        found[name] = Tensor(xp.asarray(array), format(fmt) if fmt else None)
    for name in shapes:
        if f"weights/{name}" not in found:
            raise KeyError(name)
    return found


def _delays_to_arrays(delays: Delays) -> Arrays:
    histories = delays.histories.values()
    amaxes = [amax for history in histories for amax in history.amaxes]
    return {
        "delays/places": np.array(list(delays.histories), np.str_),
        "delays/factors": np.array([history.factor for history in histories], np.float32),
        "delays/lengths": np.array([len(history.amaxes) for history in histories], np.int64),
        "delays/amaxes": np.array(amaxes, np.float32),
    }


def _delays(arrays: Arrays) -> Delays:
    if not any(name.startswith("delays/") for name in arrays):
        return Delays()  # recorded before there was delayed scaling
    ends = np.cumsum(arrays["delays/lengths"])[:-1]
    amaxes = np.split(arrays["delays/amaxes"], ends)
    rows = zip(arrays["delays/factors"].tolist(), amaxes, strict=False)
    histories = [AmaxHistory(factor, tuple(seen.tolist())) for factor, seen in rows]
    return Delays(dict(zip(arrays["delays/places"].tolist(), histories, strict=True)))


def _totals_to_arrays(counts: Mapping[str, OpCounts]) -> Arrays:
    rows = list(counts.values())
    none = np.zeros(0, np.int64)
    histograms = [none if row.histogram is None else row.histogram for row in rows]
    totals: dict[str, Any] = {
        "role": np.array([row.role for row in rows], np.str_),
        "phase": np.array([row.phase for row in rows], np.str_),
        **{name: np.array([getattr(row, name) for row in rows], np.int64) for name in COUNTS},
        **{name: np.array([getattr(row, name) for row in rows], float) for name in _MEASURES},
        "bins": np.array([len(histogram) for histogram in histograms], np.int64),
        "histogram": np.concatenate([none, *histograms]),
    }
    return {f"totals/{name}": column for name, column in totals.items()}


def totals(arrays: Arrays) -> dict[str, OpCounts]:
    """Return the counts by role in a checkpoint; raise `DamagedError` if they are not there."""
    try:
        columns = {name: arrays[f"totals/{name}"].tolist() for name in ("role", "phase", "bins")}
        numbers = {name: arrays[f"totals/{name}"].tolist() for name in (*COUNTS, *_MEASURES)}
        histograms = np.split(arrays["totals/histogram"], np.cumsum(columns["bins"])[:-1])
        counts = {}
        for i, role in enumerate(columns["role"]):
            row = {name: column[i] for name, column in numbers.items()}
            histogram = histograms[i] if columns["bins"][i] else None
            counts[role] = OpCounts(
                role=role, phase=columns["phase"][i], histogram=histogram, **row
            )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        msg = f"the checkpoint's totals cannot be read: {error!r}"
        raise DamagedError(msg) from None
    return counts
