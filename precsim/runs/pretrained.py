"""Weights from elsewhere and for elsewhere: a checkpoint of precsim's, or a .safetensors file.

A .safetensors file may have precsim's names or those of GPT-2 (Hugging Face transformers: `h.0.attn.
c_attn.weight`, with or without "transformer." before it), whose Conv1D keeps a weight as (inputs,
outputs), as precsim does; only `lm_head.weight` is turned.  The library `safetensors` reads and
writes them: pip install 'precsim[pretrained]'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from precsim.backend import to_numpy
from precsim.formats.codes import decode
from precsim.nn.gpt import GPT, GPTConfig
from precsim.runs import npz
from precsim.runs.files import RunError, read_file, write_file
from precsim.runs.npz import Arrays
from precsim.runs.store import LONGEST_FILE, read_arrays, read_index

HEAD, TOKENS, PLACES = "head.weight", "wte.weight", "wpe.weight"

_GPT2 = {
    r"h\.(\d+)\.ln_([12])\.(weight|bias)": r"blocks.\1.ln\2.\3",
    r"h\.(\d+)\.attn\.c_attn\.(weight|bias)": r"blocks.\1.qkv.\2",
    r"h\.(\d+)\.attn\.c_proj\.(weight|bias)": r"blocks.\1.proj.\2",
    r"h\.(\d+)\.mlp\.c_fc\.(weight|bias)": r"blocks.\1.fc1.\2",
    r"h\.(\d+)\.mlp\.c_proj\.(weight|bias)": r"blocks.\1.fc2.\2",
    r"ln_f\.(weight|bias)": r"lnf.\1",
}
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
"""The causal mask, which old files of GPT-2 carry along."""

_BACK = {"ln1": "ln_1", "ln2": "ln_2", "qkv": "attn.c_attn", "proj": "attn.c_proj",
         "fc1": "mlp.c_fc", "fc2": "mlp.c_proj", "lnf": "ln_f"}  # fmt: skip

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_DECODED = {"BF16": ("<u2", "bf16"), "F8_E4M3": ("u1", "e4m3"), "F8_E5M2": ("u1", "e5m2")}


class WeightsError(RunError):
    """A file of weights cannot be used; the message says why, and what to try."""


@dataclass(frozen=True)
class Weights:
    """Tensors by precsim's names, and what the file says about the model, None where it does not.

    `alphabet` holds the byte of each token.
    """

    path: Path
    tensors: Mapping[str, np.ndarray]
    heads: int | None = None
    alphabet: bytes | None = None


def load_weights(path: str | os.PathLike[str], config: GPTConfig, alphabet: bytes) -> Arrays:
    """Return the parameters of a model of this config on a text of these bytes.

    `path` is a .safetensors file, a checkpoint (.npz), or a run's directory: its newest checkpoint.
    Of more positions than the context the first are taken.  Tokens go by their bytes, so a file
    that knows all letters of the text fits, in whatever order it has them.

    Raises `WeightsError` where the file is missing or damaged, or is another model's.
    """
    found = _in_order_of(_with_head(read_weights(Path(path)), config), alphabet)
    tensors, shapes = dict(found.tensors), config.shapes()
    _check_model(found, config)
    if PLACES in tensors:
        tensors[PLACES] = tensors[PLACES][: config.context]
    _check_names(found.path, set(tensors), set(shapes))
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            msg = f"{path}: tensor {name!r} has shape {tensors[name].shape}; expected {shape}"
            raise WeightsError(msg)
        if not np.isfinite(tensors[name]).all():
            msg = (
                f"{path}: tensor {name!r} holds values that are not finite: no model to start from"
            )
            raise WeightsError(msg)
    return {name: tensors[name] for name in shapes}


def read_weights(path: Path) -> Weights:
    """Return what a file holds, by precsim's names; raise `WeightsError` where it cannot be read."""
    if not path.exists():
        msg = f"no file {str(path)!r}: expected a .safetensors file, a checkpoint (.npz) or a run"
        raise WeightsError(msg)
    try:
        if path.is_dir():
            checkpoints = read_index(path).of("ckpt")
            if not checkpoints:
                msg = f"{path} has no checkpoint: expected the directory of a run"
                raise WeightsError(msg)
            return _from_checkpoint(path, read_arrays(path, checkpoints[-1]))
        data = read_file(path, LONGEST_FILE)
        if path.suffix == ".npz":
            return _from_checkpoint(path, npz.unpack(data))
    except RunError as error:
        if isinstance(error, WeightsError):
            raise
        msg = f"{path} cannot be read: {error}"
        raise WeightsError(msg) from None
    if path.suffix == ".safetensors":
        return _from_safetensors(path, data)
    msg = f"{path}: expected a .safetensors file, a checkpoint (.npz) or a run's directory"
    raise WeightsError(msg)


def _from_checkpoint(path: Path, arrays: Arrays) -> Weights:
    prefix = "weights/"
    tensors = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    try:
        return Weights(path, tensors, int(arrays["heads"]), arrays["alphabet"].tobytes())
    except (KeyError, ValueError, TypeError) as error:
        msg = f"{path} is no checkpoint of this version of precsim: {error!r}"
        raise WeightsError(msg) from None


def _from_safetensors(path: Path, data: bytes) -> Weights:
    library = _library()
    try:
        stored = dict(library.deserialize(data))
        with library.safe_open(path, framework="np") as file:
            said = file.metadata() or {}
        tensors = {name: _array(path, name, one) for name, one in stored.items()}
        heads = int(said["heads"]) if "heads" in said else None
        alphabet = bytes.fromhex(said["alphabet"]) if "alphabet" in said else None
    except (library.SafetensorError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, WeightsError):
            raise
        msg = f"{path} is no intact .safetensors file: {error}"
        raise WeightsError(msg) from None
    return Weights(path, _renamed(tensors), heads, alphabet)


def _library() -> Any:
    try:
        import safetensors
    except ImportError:
        msg = "a .safetensors file needs its library: pip install 'precsim[pretrained]'"
        raise WeightsError(msg) from None
    return safetensors


def _array(path: Path, name: str, one: Mapping[str, Any]) -> np.ndarray:
    kind, shape = one["dtype"], tuple(one["shape"])
    if kind in _NUMPY:
        return np.frombuffer(one["data"], _NUMPY[kind]).reshape(shape)
    if kind in _DECODED:
        dtype, fmt = _DECODED[kind]
        return decode(np.frombuffer(one["data"], dtype).reshape(shape), fmt)
    msg = f"{path}: tensor {name!r} is {kind}; expected one of {', '.join([*_NUMPY, *_DECODED])}"
    raise WeightsError(msg)


def _renamed(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give tensors precsim's names; a name that is neither GPT-2's nor precsim's stays."""
    renamed = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("transformer.")
        if name == "lm_head.weight":
            renamed[HEAD] = tensor.T
        elif not _BUFFERS.fullmatch(name):
            renamed[_ours(name)] = tensor
    return renamed


def _ours(name: str) -> str:
    for pattern, ours in _GPT2.items():
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return name


def _with_head(found: Weights, config: GPTConfig) -> Weights:
    """Leave out a head that repeats the embedding, where the model has none of its own."""
    tensors = dict(found.tensors)
    if config.tied and HEAD in tensors:
        head = tensors.pop(HEAD)
        if TOKENS not in tensors or not np.array_equal(head, tensors[TOKENS].T):
            msg = f"{found.path} has a head of its own, other than its embedding: set tied=false"
            raise WeightsError(msg)
    if not config.tied and HEAD not in tensors and TOKENS in tensors:
        msg = f"{found.path} has no head of its own, but uses its embedding: set tied=true"
        raise WeightsError(msg)
    return replace(found, tensors=tensors)


def _in_order_of(found: Weights, alphabet: bytes) -> Weights:
    """Put the tokens into the order of a text's alphabet, where the file says which they are."""
    if found.alphabet is None or found.alphabet == alphabet:
        return found
    unknown = bytes(byte for byte in alphabet if byte not in found.alphabet)
    if unknown:
        msg = (
            f"{found.path} was trained on a text without {len(unknown)} of this one's bytes "
            f"({unknown[:8]!r}): choose a text with the same letters"
        )
        raise WeightsError(msg)
    order = [found.alphabet.index(byte) for byte in alphabet]
    tensors = dict(found.tensors)
    for name, axis in {TOKENS: 0, HEAD: 1}.items():
        if name in tensors and tensors[name].shape[axis] == len(found.alphabet):
            tensors[name] = np.take(tensors[name], order, axis)
    return replace(found, tensors=tensors)


def _check_model(found: Weights, config: GPTConfig) -> None:
    """Raise where the file is of a model of other sizes, with the entries that would fit it."""
    tensors = found.tensors
    numbers = [int(m[1]) for n in tensors if (m := re.match(r"blocks\.(\d{1,6})\.", n))]
    sizes = {"layers": max(numbers, default=-1) + 1}
    if TOKENS in tensors and tensors[TOKENS].ndim == 2:
        sizes["vocabulary"], sizes["width"] = tensors[TOKENS].shape
    if found.heads is not None:
        sizes["heads"] = found.heads
    if PLACES in tensors and 0 < len(tensors[PLACES]) < config.context:
        sizes["context"] = len(tensors[PLACES])
    differ = {name: size for name, size in sizes.items() if size != getattr(config, name)}
    if "vocabulary" in differ:
        msg = (
            f"{found.path} has a vocabulary of {differ['vocabulary']} tokens, the text "
            f"{config.vocabulary} different bytes: expected a model trained on such a text"
        )
        raise WeightsError(msg)
    if differ and sizes["layers"]:
        wanted = ", ".join(f"{name}={getattr(config, name)}" for name in differ)
        has = ", ".join(f"{name}={size}" for name, size in differ.items())
        msg = f"{found.path} is a model of {has}, the config one of {wanted}: set {has}"
        raise WeightsError(msg)


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    for what, names in {"lacks": expected - found, "also has": found - expected}.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            msg = (
                f"{path} {what} the tensor {min(names)!r}{more}: expected the weights of a GPT, by "
                "precsim's names or GPT-2's"
            )
            raise WeightsError(msg)


def save_weights(
    path: str | os.PathLike[str], model: GPT, alphabet: bytes = b"", names: str = "precsim"
) -> None:
    """Write a model's weights as a .safetensors file, in float32, or float64 where that is needed.

    `alphabet` holds the byte of each token, and goes into the file with the model's sizes.
    `names` is "precsim" or "gpt2".  Raises `WeightsError` for another ending or other names, and
    `RunError` where the file cannot be written.
    """
    where = Path(path)
    if where.suffix != ".safetensors" or names not in ("precsim", "gpt2"):
        msg = (
            f"expected a file NAME.safetensors and names precsim or gpt2; got {where} and {names!r}"
        )
        raise WeightsError(msg)
    _library()
    from safetensors.numpy import save

    config, tensors = model.config, {}
    for name, parameter in model.parameters.items():
        values = to_numpy(parameter.data)
        single = values.astype(np.float32)
        values = single if np.array_equal(single, values, equal_nan=True) else values
        turned = names == "gpt2" and name == HEAD
        tensors[_gpt2(name) if names == "gpt2" else name] = np.ascontiguousarray(
            values.T if turned else values
        )
    sizes = {n: str(getattr(config, n)) for n in ("layers", "heads", "width", "context", "tied")}
    said = {"format": "precsim"} | sizes | ({"alphabet": alphabet.hex()} if alphabet else {})
    write_file(where, save(tensors, metadata=said))


def _gpt2(name: str) -> str:
    """Return GPT-2's name for one of precsim's."""
    if name == HEAD:
        return "lm_head.weight"
    *place, layer, part = name.split(".")
    block = f"h.{place[1]}." if place else ""
    return f"{block}{_BACK.get(layer, layer)}.{part}"
