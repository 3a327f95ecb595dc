"""Where arrays live: NumPy or CuPy, and random numbers that are the same on both."""

from precsim.backend.arrays import get_backend, to_numpy
from precsim.backend.compiled import tier
from precsim.backend.cupy import BackendError
from precsim.backend.random import key, normal, uniform, words
from precsim.formats.arrays import array_module

__all__ = [
    "BackendError",
    "array_module",
    "get_backend",
    "key",
    "normal",
    "tier",
    "to_numpy",
    "uniform",
    "words",
]
