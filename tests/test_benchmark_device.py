"""The GPU's benchmark runs where it is told to, and says in a sentence that there is nothing to run on."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import precsim as ps
from tests.benchmarks import device, device_bits

ROOT = Path(__file__).resolve().parents[1]


def test_without_a_gpu_it_says_so_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert device.main([]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("no GPU to measure here: the cupy backend needs CuPy")
    assert error.count("\n") == 1


def test_it_is_a_command():
    code = (
        "import runpy, sys; sys.modules['cupy'] = None; "
        "runpy.run_module('tests.benchmarks.device', run_name='__main__')"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")


@pytest.fixture
def small(cupy, monkeypatch):
    tiny = ps.GPTConfig(layers=1, heads=2, width=8, context=8, vocabulary=16, tied=True)
    monkeypatch.setattr(device, "SMALL_SIZE", 1 << 14)
    monkeypatch.setattr(device, "SMALL_GPT", tiny)
    return cupy


def measure(tmp_path, *arguments):
    """Run it, and return the rows that it wrote to a file."""
    path = tmp_path / "found.json"
    assert device.main(["--quick", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())["rows"]


def test_every_line_is_measured(small, tmp_path, capsys):
    rows = measure(tmp_path, "--only", "bandwidth", "--only", "training")
    page = capsys.readouterr().out
    lines = [text for text in page.splitlines() if text.startswith("  ") and "ms" in text]
    timed = [row for row in rows if "seconds" in row]
    assert len(timed) == len(lines) > 20
    for fmt in (*device.FORMATS, *device.SCALED):
        assert any(row["format"] == fmt for row in rows)
    held = {row["what"] for row in rows if "target" in row}
    assert held == set(device.BANDWIDTH_TARGETS)
    assert [row["what"] for row in rows if "failed" in row] == ["PyTorch, float32"]


def test_the_bits_are_compared_in_every_format(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(device_bits, "QUICK_STRIDE", 2**24 - 1)
    rows = measure(tmp_path, "--only", "bits")
    assert {row["format"] for row in rows} > set(ps.FORMATS)
    assert all(row["differ"] == 0 < row["of"] for row in rows)
    assert f" {rows[0]['of']:,} differ" in capsys.readouterr().out


def test_another_exp_is_seen_in_its_ops_and_in_the_hashes(small, tmp_path, monkeypatch):
    """One value in three is one unit in the last place off, on the device alone."""
    exp = small.exp

    def other(x, *args, **kwargs):
        found = exp(x, *args, **kwargs)
        flat = found.reshape(-1)[::3]
        flat *= 1 + 2.0**-52
        return found

    monkeypatch.setattr(small, "exp", other)
    rows = {row["what"]: row for row in measure(tmp_path, "--only", "runs")}
    assert "results of matmul" not in rows
    assert "differ before rounding, by 2^-5" in rows["results of softmax"]["says"]
    assert rows["results of softmax"]["differ"] <= 3  # for fp16 hides it, or nearly so


def test_what_fails_is_told_and_the_rest_goes_on(small, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise MemoryError("Out of memory allocating 3 bytes")

    monkeypatch.setattr(device, "words", full)
    monkeypatch.setattr(device, "on_device", full)
    rows = measure(tmp_path, "--only", "bandwidth", "--only", "training")
    failed = [row for row in rows if "failed" in row]
    assert [row["part"] for row in failed] == ["bandwidth"] + ["training"] * 5
    assert capsys.readouterr().out.count("Out of memory allocating 3 bytes") == 5


def test_the_model_is_the_smallest_gpt_2():
    sizes = device.GPT.shapes().values()
    assert sum(map(math.prod, sizes)) == pytest.approx(124e6, rel=0.01)
