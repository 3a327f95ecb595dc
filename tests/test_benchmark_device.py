"""The GPU's benchmark runs where it is told to, and says in a sentence that there is nothing to run on."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

import precsim as ps
from tests.benchmarks import device

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


def test_every_line_is_measured(cupy, monkeypatch, capsys):
    tiny = ps.GPTConfig(layers=1, heads=2, width=8, context=8, vocabulary=16, tied=True)
    monkeypatch.setattr(device, "SMALL_SIZE", 1 << 14)
    monkeypatch.setattr(device, "SMALL_GPT", tiny)
    assert device.main(["--quick"]) == 0
    page = capsys.readouterr().out
    for what in ("copy", "random words", "nearest and counters", "stochastic", "blocks"):
        assert f"\n{what} " in page
    for fmt in (*device.FORMATS, *device.SCALED):
        assert f" {fmt} " in page
    assert "precsim, e4m3, counters" in page
    assert "100%" in page.splitlines()[4]  # a copy has a copy's bandwidth


def test_the_model_is_the_smallest_gpt_2():
    sizes = device.GPT.shapes().values()
    assert sum(map(math.prod, sizes)) == pytest.approx(124e6, rel=0.01)
