"""`precsim verify`: its table, its exit codes, its state; and the report on the peers."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from precsim import cli_verify
from precsim.cli import Verbs
from precsim.formats.modes import Rounding
from precsim.formats.registry import format
from precsim.proofs import exhaustive, peers, stratified, verify
from precsim.proofs.exhaustive import CHUNKS, Mismatch
from precsim.proofs.peers import Peer

SWEEP = ["--format", "e2m1", "--mode", "up"]


def run(*arguments):
    app = typer.Typer(cls=Verbs)
    app.callback()(lambda: None)
    cli_verify.register(app)
    return CliRunner().invoke(app, ["verify", *arguments])


@pytest.fixture
def instant(monkeypatch, tmp_path):
    """Let a chunk of the sweep take no time; return the chunks that were asked for."""
    asked = []

    def check_chunk(case, chunk, quantizer=None, inputs=0):
        if inputs == 0:  # else it is the estimate's sample
            asked.append(chunk)

    monkeypatch.setattr(exhaustive, "check_chunk", check_chunk)
    monkeypatch.chdir(tmp_path)
    return asked


def test_quick_prints_a_row_for_each_proof_and_a_total():
    result = run("--quick", "--format", "e2m1", "--format", "int4")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        [proof, name, "all"]
        for name in ("e2m1", "int4")
        for proof in ("codes", "edges", "arithmetic")
    ] + [["total", lines[-1].split()[1], "0"]]
    assert all(line.split()[-2] == "0" for line in lines[1:])


def test_quick_covers_every_registered_format():
    """Without running it: which proofs there would be."""
    for name in ("fp64", "fp32", "tf32", "fp16", "e8m0"):
        proofs = [proof for proof, _ in verify._quick_proofs(format(name), (Rounding.UP,))]
        assert ("codes" in proofs) == (format(name).bits <= 16)
        assert ("arithmetic" in proofs) == (name != "fp64")
        assert "edges" in proofs
    checks = dict(verify._quick_proofs(format("fp32"), (Rounding.UP, Rounding.STOCHASTIC)))
    assert checks["arithmetic"]() == 6 * 400


def test_a_mismatch_ends_it_with_exit_code_1_and_the_input(monkeypatch):
    right = stratified.quantize

    def wrong(x, *how):
        return np.where(x == 2.5, x.dtype.type(3), right(x, *how))  # the tie goes the wrong way

    monkeypatch.setattr(stratified, "quantize", wrong)
    result = run("--quick", "--format", "e2m1", "--format", "int4")
    assert result.exit_code == 1
    assert "int4" not in result.stdout
    assert "mismatch: e2m1 nearest ieee float32" in result.stderr
    assert "2.5" in result.stderr


def test_the_sweep_covers_all_chunks_and_prints_a_row_for_each_case(instant, tmp_path):
    result = run(*SWEEP, "--format", "e4m3", "--threads", "2")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("all float32")]
    assert [row[2:6] for row in rows] == [
        ["e2m1", "up", "saturate", f"{2**32:,}"],
        ["e4m3", "up", "ieee", f"{2**32:,}"],
        ["e4m3", "up", "saturate", f"{2**32:,}"],
    ]
    assert sorted(instant) == sorted([*range(CHUNKS)] * 3)
    assert "all 2^32 float32 inputs, 3 times: about" in result.stderr
    assert "2 thread(s)" in result.stderr
    state = json.loads((tmp_path / "precsim-verify.json").read_text())
    assert {case["chunks"] for case in state["cases"].values()} == {CHUNKS}


def test_a_second_run_has_nothing_left_to_do(instant):
    run(*SWEEP)
    instant.clear()
    result = run(*SWEEP)
    assert result.exit_code == 0
    assert "e2m1" in result.stdout
    assert instant == []


def test_a_state_that_cannot_be_written_is_refused_before_the_sweep(instant, tmp_path):
    result = run(*SWEEP, "--state", str(tmp_path / "nowhere" / "mine.json"))
    assert result.exit_code == 2
    assert "cannot read or write" in result.stderr
    assert instant == []


def test_an_interrupted_sweep_goes_on_where_it_stopped(instant, monkeypatch, tmp_path):
    interrupted = exhaustive.check_chunk

    def check_chunk(case, chunk, quantizer=None, inputs=0):
        if chunk == 5:
            raise KeyboardInterrupt
        return interrupted(case, chunk, quantizer, inputs)

    monkeypatch.setattr(exhaustive, "check_chunk", check_chunk)
    result = run(*SWEEP, "--state", "mine.json")
    assert result.exit_code != 0  # 130 under `precsim`, which knows what Ctrl-C is
    assert "kept in mine.json" in result.stderr
    instant.clear()
    monkeypatch.setattr(exhaustive, "check_chunk", interrupted)
    assert run(*SWEEP, "--state", "mine.json").exit_code == 0
    assert instant == [*range(5, CHUNKS)]


def test_ctrl_c_ends_a_real_sweep_with_130_and_keeps_what_is_done(tmp_path):
    root = str(Path(cli_verify.__file__).parents[1])
    command = [sys.executable, "-m", "precsim", "verify", *SWEEP, "--state", "kept.json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": root},
    )  # fmt: skip
    first = process.stderr.readline()
    assert "all 2^32 float32 inputs, 1 times: about" in first
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    chunks = json.loads((tmp_path / "kept.json").read_text())["cases"]["e2m1 up saturate"]["chunks"]
    assert 0 <= chunks < CHUNKS


def test_a_mismatch_in_the_sweep_is_printed_in_bits_and_stays_known(instant, monkeypatch):
    def check_chunk(case, chunk, quantizer=None, inputs=0):
        wrong = chunk == 3 and inputs == 0
        return Mismatch(str(case), 0x3F880000, 0x3F900000, 0x3F800000, count=7) if wrong else None

    monkeypatch.setattr(exhaustive, "check_chunk", check_chunk)
    for _ in range(2):
        result = run(*SWEEP, "--format", "e4m3")
        assert result.exit_code == 1
        assert "mismatch: e2m1 up saturate: 0x3f880000 (1.0625) gave 0x3f900000" in result.stderr
        assert result.stdout.splitlines()[-2].split()[-2] == "7"
        assert "e4m3" not in result.stdout.splitlines()[-2]


def test_a_state_about_other_code_is_said_to_start_again(instant, tmp_path):
    run(*SWEEP)
    path = tmp_path / "precsim-verify.json"
    path.write_text(path.read_text().replace('"numpy": "', '"numpy": "0.'))
    assert "is about other code: starting again" in run(*SWEEP).stderr


def test_json_is_rows_that_a_program_can_read(instant):
    result = run(*SWEEP, "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert found["rows"][-1]["proof"] == "all float32"
    assert found["rows"][-1]["inputs"] == 2**32
    assert found["rows"][-1]["mismatches"] == 0
    assert found["numpy"] == np.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "fp17"], "unknown format 'fp17'"),
        (["--mode", "even"], "unknown rounding 'even'"),
        (["--format", "fp32"], "fp32 has 32 bits.*at most 20 bits within float32's range"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_bad_usage_ends_with_exit_code_2(instant, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert re.search(message, " ".join(result.stderr.split()))


def test_a_file_that_is_no_state_is_refused_and_kept(instant, tmp_path):
    (tmp_path / "notes.json").write_text("my notes")
    result = run(*SWEEP, "--state", "notes.json")
    assert result.exit_code == 2
    assert "notes.json is not a state file" in result.stderr
    assert (tmp_path / "notes.json").read_text() == "my notes"


# Peers.


def fake(cast, name="torch"):
    return Peer(name, "0", {"e4m3": "e4m3"}, lambda x, fmt, rounding: cast(x))


def test_every_difference_from_the_installed_libraries_is_explained():
    pytest.importorskip("ml_dtypes")
    result = run("--peers")
    assert result.exit_code == 0, result.stderr
    assert "numpy" in result.stdout
    assert "goes through float32: beside a midpoint, that rounds twice" in result.stdout
    assert "NOBODY" not in result.stdout


def test_libraries_that_are_not_here_are_named_with_the_way_to_get_them(monkeypatch):
    for name in ("gfloat", "torch"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.setattr(peers, "compare", list)
    told = run("--peers").stderr
    assert "not installed: " in told
    assert re.search(r"torch, gfloat; try `pip install 'precsim\[peers\]'`", told)


def test_a_difference_that_nobody_knows_is_a_finding(monkeypatch):
    def one_wrong(x):
        got = peers.quantize(x, "e4m3").astype(np.float64)
        return np.where(x == 1.0625, 1.125, got)  # away from even

    monkeypatch.setattr(peers, "installed", lambda: [fake(one_wrong, "other")])
    result = run("--peers")
    assert result.exit_code == 1
    assert "other 0 differs, and NOBODY KNOWS WHY" in result.stdout
    assert "1 of " in result.stdout
    assert "1.0625 in e4m3: 1.125; precsim 1.0" in result.stdout
    assert "differs on 1 inputs for no known reason" in result.stderr


def test_differences_are_counted_by_class_of_input_and_gathered_by_reason(monkeypatch):
    def saturating(x):
        return peers.quantize(x, "e4m3", overflow="saturate").astype(np.float64)

    (comparison,) = peers.compare([fake(saturating)])
    kinds = {(d.carrier, d.inputs): d for d in comparison.differences}
    assert set(kinds) == {("float32", "overflow"), ("float32", "infinity"), ("float64", "overflow")}
    assert kinds["float32", "infinity"].differ == kinds["float32", "infinity"].tried == 2
    assert 464 < kinds["float32", "overflow"].example < 464.001
    (gathered,) = peers.disagreements([comparison])
    assert gathered.differ == sum(d.differ for d in comparison.differences)
    assert "saturates" in gathered.why
    monkeypatch.setattr(peers, "installed", lambda: [fake(saturating)])
    found = json.loads(run("--peers", "--json").stdout)
    assert found["compared"][0]["differ"] == gathered.differ
    assert found["disagreements"][0]["example"]["ours"] == "nan"


def test_signs_of_zero_and_nan_count_as_numbers():
    def no_sign(x):
        return peers.quantize(x, "e4m3").astype(np.float64) + 0.0

    (comparison,) = peers.compare([fake(no_sign)])
    assert {d.inputs for d in comparison.differences} == {"zero", "below normal", "below float32"}
    zero = next(d for d in comparison.differences if d.inputs == "zero")
    assert math.copysign(1, zero.theirs) == 1
    assert math.copysign(1, zero.ours) == -1
