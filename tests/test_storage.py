"""Bytes of stored arrays, against sizes that the formats' specifications and libraries give."""

import numpy as np
import pytest

import precsim as ps
from precsim.formats.storage import stored_bytes


@pytest.mark.parametrize(
    ("fmt", "shape", "expected"),
    [
        ("fp32", (3, 5), np.zeros((3, 5), np.float32).nbytes),
        ("fp16", (3, 5), np.zeros((3, 5), np.float16).nbytes),
        ("fp64", (), 8),
        ("e8m8", (3,), 12),  # 17 bits are one too many for 16
        ("tf32", (4,), 16),  # a tf32 lies in a float32's 32 bits
        ("e4m3", (3, 5), 15),
        ("e2m1", (3, 5), 8),  # 15 codes of 4 bits, two to a byte
        ("e3m2", (4,), 3),  # OCP MX 1.0: four codes of 6 bits in three bytes
        ("bf16", (0, 7), 0),
        # OCP MX 1.0, table 1: k = 32 elements of d bits and a scale of 8: 33, 17 bytes a block
        ("mxfp8_e4m3", (2, 64), 4 * 33),
        ("mxfp4", (2, 64), 4 * 17),
        ("mxfp8_e4m3", (1, 33), 33 + 2),  # a block of one value has a scale of its own
        # arXiv:2509.25149: 16 values of 4 bits and a scale of 8; one fp32 for the tensor
        ("nvfp4", (2, 32), 4 * 9 + 4),
        ("int8:row", (3, 5), 15 + 3 * 4),
        ("int8:tensor", (3, 5), 15 + 4),
        ("e4m3:128x128", (256, 130), 256 * 130 + 4 * 4),
        ("int8:row:affine", (2, 8), 16 + 2 * (4 + 1)),
    ],
)
def test_bytes(fmt, shape, expected):
    assert stored_bytes(ps.format(fmt), shape) == expected
