"""Arrays to bytes and back: NumPy's .npz, with the same bytes for the same arrays, and no pickle.

`unpack` looks before it reads: a file that was made to fill the memory (a small zip that claims
gigabytes, a header of another size than its data) is refused by what it declares.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from precsim.runs.files import DamagedError

Arrays = dict[str, npt.NDArray[Any]]

MOST_BYTES = 1 << 34
MOST_MEMBERS = 100_000
KINDS = "biufU"
"""Kinds of dtype that a run has: truth values, integers, floats, text.  No objects: no pickle."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_./-]*")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format's first moment; the clock is no part of the data


def pack(arrays: Mapping[str, npt.NDArray[Any]], *, compress: bool = True) -> bytes:
    """Return named arrays as the bytes of an .npz file; the names' order is kept.

    Raises `TypeError` for an array of objects, `ValueError` for a name that is not plain.
    """
    buffer = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, array in arrays.items():
            if array.dtype.kind not in KINDS:
                msg = f"array {name!r} has dtype {array.dtype}: expected numbers or text"
                raise TypeError(msg)
            if not _is_plain(name):
                msg = f"{name!r} is no name for an array: expected letters, digits and ._-/"
                raise ValueError(msg)
            member = io.BytesIO()
            np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            info.compress_type = method
            archive.writestr(info, member.getbuffer())
    return buffer.getvalue()


def unpack(data: bytes, most_bytes: int = MOST_BYTES) -> Arrays:
    """Return the arrays in the bytes of an .npz file.

    Raises `DamagedError` for anything that `pack` would not write, and for more than `most_bytes`
    of arrays.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            _check_declared(members, most_bytes)
            return {m.filename.removesuffix(".npy"): _read(archive.read(m)) for m in members}
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError,
        NotImplementedError, RuntimeError, SyntaxError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        if isinstance(error, DamagedError):
            raise
        msg = f"not a readable .npz: {error}"
        raise DamagedError(msg) from None


def _check_declared(members: list[zipfile.ZipInfo], most_bytes: int) -> None:
    names = [m.filename for m in members]
    strange = [n for n in names if not (n.endswith(".npy") and _is_plain(n.removesuffix(".npy")))]
    if strange or len(set(names)) < len(names) or len(names) > MOST_MEMBERS:
        msg = f"not a run's .npz: its members are {names!r:.60}"
        raise DamagedError(msg)
    if (size := sum(m.file_size for m in members)) > most_bytes:
        msg = f"the .npz holds {size} bytes: expected at most {most_bytes}"
        raise DamagedError(msg)


def _read(member: bytes) -> npt.NDArray[Any]:
    file = io.BytesIO(member)
    if np.lib.format.read_magic(file) != (1, 0):
        msg = "an array header of another version than 1.0"
        raise DamagedError(msg)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    declared = math.prod(shape) * dtype.itemsize
    if dtype.kind not in KINDS or min(shape, default=0) < 0:
        msg = f"an array of {dtype} and shape {shape}"
        raise DamagedError(msg)
    if declared != len(member) - file.tell():
        msg = f"an array header for {declared} bytes before {len(member) - file.tell()}"
        raise DamagedError(msg)
    file.seek(0)
    array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _is_plain(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and ".." not in name and "//" not in name
