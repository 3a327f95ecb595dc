"""The command line: every verb, its JSON, its exit codes, and terminals that cannot do much."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

import precsim as ps

SMALL = ["--set", "data=reverse", "--set", "context=16", "--set", "width=16", "--set", "heads=2",
         "--set", "layers=1", "--set", "batch=4"]  # fmt: skip


def process(*args, env):
    """Run a command line in a process of its own."""
    command = [sys.executable, "-m", "precsim", *args]
    env = os.environ | env
    return subprocess.run(command, capture_output=True, env=env, timeout=60, check=False)


def test_formats_lists_every_format_with_its_largest_value(call):
    code, out, _ = call("formats")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines() if line]
    assert [name for name in names if name in ps.FORMATS] == list(ps.FORMATS)
    assert "65504" in out


def test_formats_as_json(call):
    code, out, _ = call("formats", "--json")
    facts = {fact["name"]: fact for fact in json.loads(out)}
    assert code == 0
    assert facts.keys() == ps.FORMATS.keys()
    assert facts["e4m3"]["max"] == 448
    assert facts["e4m3"]["has_inf"] is False
    assert facts["mxfp4"]["scale"] == {"format": "e8m0", "block": "1x32", "rule": "floor"}


def test_formats_draws_the_ladder(call, tmp_path):
    code, out, err = call("formats", "--figure", str(tmp_path / "new" / "ladder"))
    assert code == 0
    assert "ladder.png" in err.replace("\n", "")
    assert "ladder" not in out
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "ladder.json", "ladder.png", "ladder.svg",
    ]  # fmt: skip


def test_num_takes_a_number_apart(call):
    code, out, _ = call("num", "0.1", "--format", "e4m3")
    assert code == 0
    for part in ("0.1015625 (normal)", "0  0011", "101", "0x1d", "2^(3 - 7) x (1 + 5/8)", "1.100|1100",
                 "0.09375 |", "| 0.1015625", "80% of the way", "+0.0015625", "0.2 ulp", "0.25 u", "max 448"):  # fmt: skip
        assert part in out


def test_num_reads_decimals_exactly_so_that_fp64_rounds_one_tenth(call):
    _, out, _ = call("num", "0.1", "--format", "fp64", "--json")
    found = json.loads(out)[0]
    assert found["exact"] == "1/10"
    assert found["outcome"] == "is rounded"
    assert found["value"] == 0.1


@pytest.mark.parametrize(
    ("text", "value"),
    [("-0.1", -0.1015625), ("-.5", -0.5), ("-inf", "nan"), ("-1/3", -0.34375), ("-0x1p-3", -0.125),
     ("-0.0", -0.0), ("nan", "nan"), ("1e9", "nan"), ("-1e-9", -0.0)],
)  # fmt: skip
def test_num_takes_negative_numbers_and_what_is_no_number(call, text, value):
    code, out, _ = call("num", text, "--format", "e4m3", "--json")
    assert code == 0
    assert repr(json.loads(out)[0]["value"]) == repr(value)
    code, out, _ = call("num", text, "--format", "e4m3")
    assert code == 0
    assert text in out


def test_num_compares_formats_and_rounding_modes(call):
    code, out, _ = call("num", "-0.1", "--format", "fp16", "--format", "bf16", "--format", "mxfp4")
    assert code == 0
    assert [name in out for name in ("fp16", "bf16", "mxfp4", "-0.0999755859375")] == [True] * 4
    for rounding, draw, value in (("up", "0", 0.1015625), ("down", "0", 0.09375),
                                  ("stochastic", "0.7", 0.1015625), ("stochastic", "0.9", 0.09375)):  # fmt: skip
        _, out, _ = call(
            "num", "0.1", "--format", "e4m3", "--json", "--rounding", rounding, "--random", draw
        )
        assert json.loads(out)[0]["value"] == value


@pytest.mark.parametrize("name", ps.FORMATS)
@pytest.mark.parametrize("text", ["0", "1/3", "-1e-60", "1e400", "2"])
def test_num_has_a_page_for_every_format(call, name, text):
    code, out, err = call("num", text, "--format", name)
    assert (code, err) == (0, "")
    assert "value" in out


def test_recipes_info_version_and_help(call):
    assert "fp16_scaled" in call("recipes")[1]
    assert json.loads(call("recipes", "--json")[1])["fp16"]["loss_scale"] == "none"
    assert "master copy" in call("recipes", "diff", "apex_O2", "apex_O3")[1]
    assert json.loads(call("recipes", "diff", "fp16", "fp16", "--json")[1]) == []
    assert "diff A B" in call("recipes", "diff", "fp16")[2]
    assert "did you mean half" in call("recipes", "diff", "fp16", "hlf")[2]
    facts = json.loads(call("info", "--json")[1])
    assert facts["precsim"] == ps.__version__
    assert {"numpy", "blas", "threads", "cupy", "backend"} <= facts.keys()
    assert "numpy" in call("info")[1]
    assert call("--version") == (0, f"{ps.__version__}\n", "")
    code, out, _ = call("--help")
    assert code == 0
    assert all(
        verb in out for verb in ("demo", "train", "resume", "formats", "num", "recipes", "info")
    )


@pytest.mark.parametrize(
    "verb",
    [
        "show",
        "diff",
        "search",
        "step",
        "resume",
        "check",
        "replay",
        "fork",
        "train",
        "drift",
        "scale",
        "scan",
        "sweep",
        "verify",
        "watch",
    ],
)
def test_a_verb_that_finds_something_says_when_it_exits_with_1(narrow, verb):
    assert "Exits with 1 where" in narrow(verb, "--help")[1]


def test_what_goes_into_a_pipe_has_no_spaces_at_the_ends_of_lines(call):
    out = call("recipes")[1] + call("formats")[1] + call("num", "0.1")[1]
    assert out.count("\n") > 60
    assert [line for line in out.splitlines() if line.endswith(" ")] == []


def test_train_says_what_the_run_came_to(call):
    code, out, err = call("train", "--recipe", "bf16", "--steps", "4", *SMALL)
    assert code == 0
    assert "bf16" in out
    assert "step 4 of 4" in err
    code, out, err = call("train", "--recipe", "bf16", "--steps", "4", "--json", *SMALL)
    found = json.loads(out)
    assert err == ""
    assert found["config"]["steps"] == 4
    assert found["summary"]["steps"] == 4
    assert len(found["sample"]) == 160


def test_later_sources_win(call, tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(
        'steps = 9\nseed = 9\npolicy = "fp32"\ndata = "reverse"\ncontext = 16\nlayers = 1\n'
    )
    _, out, _ = call("train", str(file), "--recipe", "fp16", "--set", "seed=5", "--set", "steps=5",
                    "--set", "width=16", "--steps", "1", "--json")  # fmt: skip
    config = json.loads(out)["config"]
    assert (config["steps"], config["seed"]) == (1, 5)
    assert "activations=fp16" in config["policy"]


def test_a_run_is_recorded_once_and_can_be_resumed(call, tmp_path):
    folder = str(tmp_path / "run")
    assert call("train", "--steps", "3", "-o", folder, *SMALL)[0] == 0
    assert len((tmp_path / "run" / "steps.jsonl").read_text().splitlines()) == 3
    code, out, err = call("train", "--steps", "3", "-o", folder, *SMALL)
    assert (code, out) == (2, "")
    assert "--force" in err
    assert call("train", "--steps", "2", "-o", folder, "--force", *SMALL)[0] == 0
    code, out, _ = call("resume", folder, "--json")
    assert code == 0
    assert json.loads(out)["summary"]["steps"] == 2


def test_a_run_that_diverges_is_a_finding(call):
    code, out, err = call(
        "train", "--set", "policy=fp16", "--set", "lr=1e9", "--steps", "20", *SMALL
    )
    assert code == 1
    assert "nan" in out
    assert "diverged" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["num", "0.1", "--format", "e4q3"], "did you mean e4m3"),
        (["num", "abc"], "cannot read the number 'abc'"),
        (["num", "1e999999999"], "too long or too far"),
        (["num", "1", "--rounding", "sideways"], "unknown rounding 'sideways'"),
        (["train", "--recipe", "fp61"], "did you mean fp16"),
        (["train", "--set", "lr=nan"], "lr must be a finite number"),
        (["train", "--set", "lr=inf"], "lr must be a finite number"),
        (["train", "--set", "heads=3"], "heads must divide the width"),
        (["train", "--set", "stepz=3"], "did you mean steps"),
        (["train", "--set", "width"], "expected key=value"),
        (["train", "--set", "policy=e4q3"], "e4q3"),
        (["train", "--set", "data=reverse"], "the context must be 16"),
        (["train", "--steps", "0"], "steps must be at least 1"),
        (["train", "--text", "missing.txt"], "no file 'missing.txt'"),
        (["train", "--text", "."], "it is a directory"),
        (["train", "missing.toml"], "cannot read missing.toml"),
        (["train", "-o", "file.txt/run"], "file.txt"),
        (["resume", "."], "run"),
        (["demo", "--steps", "0"], "steps must be at least 1"),
        (["demo", "--text", "missing.txt"], "no file 'missing.txt'"),
        (["demo", "--text", "file.txt"], "too short"),
        (["demo", "-o", "file.txt"], "file.txt"),
        (["formats", "--figure", "x.bmp"], ".png, .svg or .pdf"),
        (["formats", "--figure", "file.txt/x.png"], "file.txt"),
    ],
)
def test_bad_input_gets_one_sentence(call, tmp_path, monkeypatch, args, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("short")
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("precsim: ")
    assert err.count("\n") == 1


def test_a_malformed_config_file_says_where(call, tmp_path):
    file = tmp_path / "config.toml"
    for text, says in (
        ("steps = = 3", "not valid TOML"),
        ("[a]\nb = 1", "flat"),
        ("steps = 'x'", "steps must be"),
    ):
        file.write_text(text)
        code, _, err = call("train", str(file))
        assert code == 2
        assert says in err


@pytest.mark.parametrize(
    ("args", "says"),
    [(["dmo"], "demo"), (["num"], "value"), (["num", "1", "--formt", "fp16"], "--format"),
     (["train", "--steps", "x"], "--steps")],
)  # fmt: skip
def test_bad_usage_is_2_too(call, args, says):
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    assert says in err.lower()


def test_a_bug_is_3_and_shows_where(call, monkeypatch):
    def broken(*args):
        raise RuntimeError("boom")

    monkeypatch.setattr("precsim.show.terminal.formats_table", broken)
    code, _, err = call("formats")
    assert code == 3
    assert "RuntimeError: boom" in err
    assert "bug" in err.splitlines()[-1]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_every_encoding_and_a_narrow_terminal_will_do(encoding):
    env = {"PYTHONIOENCODING": encoding, "COLUMNS": "60", "TERM": "dumb"}
    verbs = (["formats"], ["num", "1/3"], ["num", "-0.1", "--format", "fp64"], ["recipes"],
             ["train", "--set", "data=zen", "--steps", "2", *SMALL[4:]])  # fmt: skip
    code = f"import sys, precsim.cli as c\nfor verb in {verbs}:\n    try: c.main(verb)\n    except SystemExit as e: assert not e.code, verb"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, **env}, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    text = done.stdout.decode(encoding)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 60


def test_colour_is_for_terminals_and_can_be_forbidden():
    assert b"\x1b[" in process("num", "0.1", env={"FORCE_COLOR": "1", "NO_COLOR": ""}).stdout
    plain = process(
        "num", "0.1", "--format", "fp16", env={"FORCE_COLOR": "1", "NO_COLOR": "1"}
    ).stdout
    assert b"\x1b[3" not in plain  # no colour; bold and dim may stay


def test_formats_starts_without_what_it_does_not_need():
    code = (
        "import sys, precsim.cli as c\ntry: c.main(['formats'])\nexcept SystemExit: pass\n"
        "print([m for m in ('matplotlib', 'multiprocessing', 'precsim.analyse', 'precsim.proofs') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["[]"]


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals as on Unix")
@pytest.mark.parametrize(
    ("verb", "start"), [("formats --json", '[{"name":"'), ("lesson list", "00  A tour")]
)
def test_a_reader_who_has_enough_is_no_error(verb, start):
    command = f"{sys.executable} -m precsim {verb} | head -c {len(start)}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, start, "")


@pytest.mark.skipif(os.name == "nt", reason="pipes and signals as on Unix")
def test_ctrl_c_stops_a_recorded_run_so_that_it_can_go_on(tmp_path):
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "precsim",
        "train",
        "--steps",
        "1000",
        "-o",
        str(folder),
        *SMALL,
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        while not (folder / "steps.jsonl").exists() or not (folder / "steps.jsonl").read_text():
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert out == ""
    assert "precsim resume" in err
    assert "Traceback" not in err


def test_help_lists_every_verb_under_a_heading_and_cuts_none_short(call):
    code, out, _ = call("--help", columns=80)
    assert code == 0
    verbs = re.findall(r"^  ([a-z]+)  +[A-Z]", out, re.MULTILINE)
    assert {"demo", "train", "diff", "report", "lesson", "verify", "info"} <= set(verbs)
    assert len(verbs) == len(set(verbs)) >= 25
    assert "...\n" not in out.partition("Start here")[2]
    assert max(map(len, out.splitlines())) <= 80
