"""Keyed random numbers: what is drawn depends on where it is used, never on what was drawn before.

A random *stream* would tie every stochastic rounding to all those before it: an op more in block 0
would change the noise of block 1, a resumed run would have to restore a state, and two threads
would race.  Here a draw is a function instead,

    word(seed, op path, step, call; element index),

computed by Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a
block cipher that turns a key and a counter into four 64-bit words.  The key says which op, the
counter which element.  So element i gets the same bits whatever the chunking, the number of
threads or the backend, one op can be replayed without its history, and changing one op shifts
nobody else.

On NumPy the cipher is NumPy's own, in C, 1.6 ns per word here, or `precsim.backend.fused_random`'s,
where compiled kernels are in use.  CuPy has no Philox4x64, so `precsim.backend.one_pass` spells it.
The tests hold both to NumPy's and to the vectors that its authors published, bit for bit.
"""

from __future__ import annotations

import math
import operator
from hashlib import blake2b
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.backend import compiled
from precsim.backend.cupy import philox

Key = tuple[int, int]
"""Two 64-bit words, made by `key`."""

Shape = int | tuple[int, ...]

_MASK = 2**64 - 1
_WORDS_PER_BLOCK = 8


def key(seed: int, path: str, step: int, call: int) -> Key:
    """Return the 128-bit key of one use of randomness; different arguments, different keys.

    `path` says who draws ("block0.attn.softmax"), `step` in which training step, `call` which of
    the step's draws at that path.  Any integers will do, negative ones included; floats raise
    `TypeError`, since 1.0 and 1 would silently be two keys.  BLAKE2b-128 of an encoding from which
    all four can be read back.
    """
    numbers = ",".join(str(operator.index(number)) for number in (seed, step, call))
    digest = blake2b(f"{numbers},{path}".encode(), digest_size=16, person=b"precsim key").digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def words(key: Key, shape: Shape, start: int = 0, xp: ModuleType = np) -> npt.NDArray[np.uint32]:
    """Return uniform 32-bit words: element i of the result is word ``start + i`` of the key.

    An empty shape gives a 0-d array, a zero in it an empty one.  Words 2j and 2j+1 are the low and
    high halves of the j-th output of ``np.random.Philox(key=key)``.  Elements count in C order, so
    ``words(k, n)[a:b]`` equals ``words(k, b - a, start=a)``.
    Raises `ValueError` for a key, shape or start that cannot be.
    """
    count, start = _count(shape), _index(start, "start")
    block, skip = divmod(start, _WORDS_PER_BLOCK)
    blocks = -(-(skip + count) // _WORDS_PER_BLOCK)
    raw = _raw(_checked(key), block, blocks, xp)
    # A view splits a word in two; it finds the low half first if the bytes are little-endian.
    halves = raw.astype("<u8", copy=False).view("<u4").astype(xp.uint32, copy=False)
    return halves[skip : skip + count].reshape(shape)  # type: ignore[no-any-return]


def uniform(key: Key, shape: Shape, start: int = 0, xp: ModuleType = np) -> npt.NDArray[np.float64]:
    """Return float64 uniform on [0, 1): multiples of 2^-53, zero possible, one not.

    Element i is made of words 2i and 2i+1, exactly as ``Generator(Philox(key=key)).random`` does,
    so `start` counts elements.  Raises as `words` does.
    """
    count, start = _count(shape), _index(start, "start")
    block, skip = divmod(start, _WORDS_PER_BLOCK // 2)
    blocks = -(-(skip + count) // (_WORDS_PER_BLOCK // 2))
    raw = _raw(_checked(key), block, blocks, xp)[skip : skip + count]
    return ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)  # type: ignore[no-any-return]


def normal(key: Key, shape: Shape) -> npt.NDArray[np.float64]:
    """Return standard normal float64, for initial weights; NumPy only, whatever the backend.

    NumPy's ziggurat rejects some draws, so unlike `words` this is a stream: element i depends on
    the elements before it (not on those after), and there is no `start`.  It is preferred to
    Box-Muller because it takes no logarithm or cosine for 99 draws in 100: those differ in the
    last bit between machines, table look-ups do not.  Copy the result to the device if need be.
    """
    _count(shape)
    return np.random.Generator(_generator(_checked(key), 0)).standard_normal(shape)


def _raw(key: Key, block: int, blocks: int, xp: ModuleType) -> Any:
    """`blocks` blocks of four 64-bit words each, flat, from block `block` on."""
    if xp is np:
        if block + blocks < _MASK and (raw := compiled.random(key, block, blocks)) is not None:
            return raw
        return _generator(key, block).random_raw(4 * blocks)
    # NumPy increments the counter before it enciphers it: its first block is that of counter 1.
    return philox(xp, block + 1, blocks, key)


def _generator(key: Key, block: int) -> np.random.Philox:
    counter = np.array([block, 0, 0, 0], np.uint64)
    return np.random.Philox(key=np.array(key, np.uint64), counter=counter)


def _checked(key: Key) -> Key:
    is_key = isinstance(key, tuple) and len(key) == 2
    if not is_key or not all(isinstance(k, int) and 0 <= k <= _MASK for k in key):
        msg = (
            f"expected a key of two 64-bit words, got {key!r}: "
            "make one with precsim.backend.key(seed, path, step, call)"
        )
        raise ValueError(msg)
    return key


def _count(shape: Shape) -> int:
    sizes = shape if isinstance(shape, tuple) else (shape,)
    return math.prod(_index(size, "every size in shape") for size in sizes)


def _index(value: int, name: str) -> int:
    if (value := operator.index(value)) < 0:
        msg = f"expected {name} to be 0 or more, got {value}"
        raise ValueError(msg)
    return value
