"""The parts of a run directory: whole files, checked lines, arrays without pickle, one writer."""

import io
import math
import os
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from precsim.runs import files, npz
from precsim.runs.files import Appender, DamagedError, RunError, read_file, write_file
from precsim.runs.lines import decode_line, decode_lines, encode_line, parse, plain
from precsim.runs.lock import Lock, is_held, owner

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.dictionaries(st.text().filter(lambda name: name != "crc"), VALUES, max_size=5)


@given(ENTRIES)
def test_a_line_says_what_was_written(entry):
    line = encode_line(entry)
    assert line.count(b"\n") == 1
    assert decode_line(line[:-1]) == plain(entry)


@given(ENTRIES, st.data())
def test_a_changed_byte_of_a_line_is_found(entry, data):
    line = encode_line(entry)[:-1]
    place = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != line[place]))
    with pytest.raises(DamagedError):
        decode_line(line[:place] + bytes([byte]) + line[place + 1 :])


@pytest.mark.parametrize(
    ("line", "means"),
    [
        (b'{"a": 1,"crc":"CRC"}', b'{"a":1}'),
        (b'{"crc":"CRC","a":1}', b'{"a":1}'),
        (b'{"\\u0061":1,"crc":"CRC"}', b'{"a":1}'),
        (b'{"a":1.0e0,"crc":"CRC"}', b'{"a":1.0}'),
    ],
)
def test_there_is_one_way_only_to_write_a_line(line, means):
    """The checksum fits what these mean, but they are not what was written."""
    line = line.replace(b"CRC", f"{zlib.crc32(means):08x}".encode())
    with pytest.raises(DamagedError, match="does not fit the line"):
        decode_line(line)


@given(ENTRIES, st.data())
def test_a_cut_line_is_found(entry, data):
    line = encode_line(entry)[:-1]
    with pytest.raises(DamagedError):
        decode_line(line[: data.draw(st.integers(0, len(line) - 1))])


def test_lines_one_by_one_and_a_torn_end():
    good, bad = encode_line({"a": 1}), b'{"a":1,"crc":"00000000"}\n'
    lines, torn = decode_lines(good + bad + good + good[:5])
    assert [isinstance(line, dict) for line in lines] == [True, False, True]
    assert torn
    assert decode_lines(b"") == ([], False)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}', b"NaN", b"[1,", b"\xff", b"[" * 200_000, b'{"a":Infinity}', b"",
        b"1" * 5000,
    ],
)  # fmt: skip
def test_json_that_is_not_quite_json_is_refused(text):
    with pytest.raises(DamagedError, match="not valid JSON"):
        parse(text)


def test_a_number_too_large_for_json_has_no_valid_checksum():
    with pytest.raises(DamagedError):
        decode_line(b'{"a":1e999,"crc":"00000000"}')


DTYPES = st.sampled_from(["?", "i1", "i4", "u8", "f4", "f8", "U7"])
ARRAYS = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_.]{0,8}", fullmatch=True).filter(lambda name: ".." not in name),
    DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, min_side=0))),
    max_size=4,
)


@given(ARRAYS, st.booleans())
def test_arrays_come_back_to_the_bit(arrays, compress):
    data = npz.pack(arrays, compress=compress)
    assert data == npz.pack(arrays, compress=compress)
    back = npz.unpack(data)
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()


@given(ARRAYS, st.data())
def test_whatever_is_wrong_with_an_npz_is_one_kind_of_error(arrays, data):
    packed = bytearray(npz.pack(arrays))
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(packed)) | st.just(len(packed)))
    with suppress(DamagedError):
        npz.unpack(bytes(packed[:cut]))


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array, **options):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def header(declared):
    text = str(declared).encode()
    text += b" " * (118 - len(text) - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped(**{"a.npy": bytes(200_000_000)}), "holds 200000000 bytes"),
        (zipped(**{"../a.npy": npy(np.ones(2))}), "members"),
        (zipped(**{"/a.npy": npy(np.ones(2))}), "members"),
        (zipped(**{"a.txt": b"text"}), "members"),
        (zipped(**{"a.npy": npy(np.array([{}, 1]), allow_pickle=True)}), "an array of object"),
        (zipped(**{"a.npy": npy(np.ones(2), version=(2, 0))}), "version"),
        (
            zipped(
                **{"a.npy": header({"descr": "<f8", "fortran_order": False, "shape": (10**9,)})}
            ),
            "for 8000000000 bytes before 0",
        ),
        (
            zipped(**{"a.npy": header({"descr": "<f8", "fortran_order": False, "shape": (-1,)})}),
            "shape",
        ),
        (zipped(**{"a.npy": b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535}), "not a readable .npz"),
        (b"PK", "not a readable .npz"),
        (b"", "not a readable .npz"),
    ],
)
def test_files_made_to_harm_are_refused(data, message):
    with pytest.raises(DamagedError, match=message):
        npz.unpack(data, most_bytes=100_000_000)


def test_no_objects_and_no_strange_names_are_written():
    with pytest.raises(TypeError, match="numbers or text"):
        npz.pack({"a": np.array([{}])})
    for name in ("", "../a", "a//b", "a b", "/a"):
        with pytest.raises(ValueError, match="no name"):
            npz.pack({name: np.ones(1)})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_file(path, b"before")

    def full(file, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", full)
    with pytest.raises(files.DiskFullError, match="no room on the disk for"):
        write_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path, monkeypatch):
    appender = Appender(tmp_path / "a")
    appender.append(b"first\n")
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda f, d: write(f, d[:3]))
    appender.append(b"in pieces\n")
    parts = iter([3])

    def tears(file, data):
        for length in parts:
            return write(file, data[:length])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "write", tears)
    with pytest.raises(files.DiskFullError):
        appender.append(b"second\n")
    appender.close()
    assert (tmp_path / "a").read_bytes() == b"first\nin pieces\n"


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "long").write_bytes(bytes(10))
    with pytest.raises(DamagedError, match="is missing"):
        read_file(tmp_path / "none", 10)
    with pytest.raises(DamagedError, match="not a regular file"):
        read_file(tmp_path, 10)
    with pytest.raises(DamagedError, match="has 10 bytes: expected at most 9"):
        read_file(tmp_path / "long", 9)


def test_a_file_that_goes_while_it_is_read_is_missing(tmp_path, monkeypatch):
    """As a writer thins a trace: the reader then looks at the index again."""
    place = tmp_path / "chunk"
    place.write_bytes(b"x")

    def read_bytes(path, read=Path.read_bytes):
        path.unlink()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(DamagedError, match="chunk is missing"):
        read_file(place, 10)


def test_one_writer_at_a_time(tmp_path):
    with Lock(tmp_path / "run") as lock:
        assert owner(lock.path)["pid"] == os.getpid()
        assert is_held(tmp_path / "run")
        with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
            Lock(tmp_path / "run").__enter__()
        assert lock.path.exists()
    assert not lock.path.exists()
    with Lock(tmp_path / "run"):
        pass


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from precsim.runs.lock import Lock\n"
        "Lock(Path(sys.argv[1])).__enter__(); print(os.getpid(), flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        pid = int(process.stdout.readline())
        with pytest.raises(RunError, match=f"process {pid} on"):
            Lock(tmp_path).__enter__()
        process.kill()
    assert owner(tmp_path / "LOCK")["pid"] == pid
    assert not is_held(tmp_path)
    with Lock(tmp_path):
        assert owner(tmp_path / "LOCK")["pid"] == os.getpid()


def test_the_lock_of_another_machine_is_respected(tmp_path):
    (tmp_path / "LOCK").write_bytes(encode_line({"pid": 1, "host": "elsewhere.invalid"}))
    assert is_held(tmp_path)
    with pytest.raises(RunError, match=r"process 1 on elsewhere\.invalid.*remove"):
        Lock(tmp_path).__enter__()


def test_an_error_while_writing_leaves_the_lock_as_a_sign(tmp_path):
    def fail(lock):
        lock.writing = True
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Lock(tmp_path) as lock:
        fail(lock)
    assert (tmp_path / "LOCK").exists()
    with Lock(tmp_path):
        pass
    assert not (tmp_path / "LOCK").exists()


@pytest.mark.parametrize("x", [0.1, 1e-310, -0.0, math.pi, 1e308, 2**53 + 1.0])
def test_floats_come_back_to_the_bit(x):
    back = decode_line(encode_line({"x": x})[:-1])["x"]
    assert np.float64(back).tobytes() == np.float64(x).tobytes()
