"""Looking into a step on the command line: a planted fault is named, a healthy run is not blamed."""

import io
import json
import re
import sys

import pytest

import precsim as ps
from precsim.cli import main

CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=1, width=8, context=16, batch=2, steps=3, eval_every=3,
    checkpoint_every=2,
)  # fmt: skip
E4M3 = (
    "weights=fp32 activations=fp32 gradients=e4m3:saturate weight_gradients=e4m3:saturate loss=fp32"
)
GOOD = str(ps.Policy.uniform("bf16", master_weights="fp32", update="fp32", optimizer_state="fp32"))
UNIFORM = str(ps.Policy.parse("bf16"))  # "bf16" alone is the recipe
GUILTY = "gradients/loss/cross_entropy_grad"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Record a run whose gradients are below e4m3's range, and a healthy one."""
    folder = tmp_path_factory.mktemp("runs")
    ps.train(CONFIG.change(policy=E4M3, micro_batches=64), out=folder / "bad")
    ps.train(CONFIG.change(policy=GOOD, observe="counts"), out=folder / "good")
    return folder


@pytest.mark.parametrize("columns", [80, 120])
def test_show_names_the_op_that_flushes(runs, narrow, columns):
    code, out, err = narrow("show", runs / "bad", "--step", 1, columns=columns)
    assert (code, err) == (1, f"precsim: first op in trouble: {GUILTY}: 100% flushed to zero\n")
    first = next(line for line in out.splitlines() if line.startswith("gradients"))
    assert first.split()[0] == GUILTY
    assert "______" in first


def test_show_has_the_first_op_in_trouble_on_top_of_those_that_follow_from_it(narrow, tmp_path):
    """A scale beyond fp16's largest overflows in one value, and all that comes after is NaN."""
    policy = str(ps.recipe("torch_amp_fp16").policy)
    config = CONFIG.change(policy=policy, loss_scale=f"dynamic:{2.0**40}:2000")
    ps.train(config, out=tmp_path / "run")
    _, out, err = narrow("show", tmp_path / "run", "--step", 0)
    first = next(line.split()[0] for line in out.splitlines() if line.partition(" ")[0].count("/"))
    assert err.startswith(f"precsim: first op in trouble: {first}: ")


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "stochastic_a8", "by a rule"])
def test_show_tells_of_updates_that_bf16_swamps_unless_chance_brings_them_back(
    narrow, tmp_path, rounding
):
    """An update of 1e-5 is far below half a step of a gain of 1, 2^-9: all of them are lost."""
    if rounding == "by a rule":
        policy = f"{UNIFORM} rule=role=weights,output=bf16:stochastic"
    else:
        policy = str(ps.Policy.uniform("bf16", weights=f"bf16:{rounding}"))
    ps.train(CONFIG.change(policy=policy, lr=1e-5), out=tmp_path / "run")
    code, out, err = narrow("show", tmp_path / "run", "--step", 1, "--sort", "lost")
    lost = re.findall(r"^(weights/\S*ln\S*weight/apply_update) .* (\d+%)", out, re.MULTILINE)
    if rounding == "nearest":
        assert code == 1
        assert re.search(r"weights/\S+/apply_update: \d+% of the updates lost", err)
        assert {share for _, share in lost} == {"100%"}
    else:
        assert (code, err) == (0, "")
    assert ("apply_update" in str(ps.open(tmp_path / "run").trouble)) is (rounding == "nearest")
    code, _, err = narrow("diff", tmp_path / "run", "--step", 1)
    assert ("updates lost" in err) is (rounding == "nearest")


def test_a_long_name_goes_on_in_another_line_behind_a_slash_or_a_dot(runs, narrow):
    words = ("show", runs / "good", "--step", 1, "--op", "weight_gradients/blocks.0.ln1*")
    _, out, _ = narrow(*words, columns=60)
    found = re.findall(r"^(weight_gradients/\S*) .*\n  (\S+)", out, re.MULTILINE)
    names = {"".join(parts) for parts in found}
    assert "weight_gradients/blocks.0.ln1/layer_norm_weight_grad" in names
    assert all(first[-1] in "/." for first, _ in found)


def test_show_draws_the_exponents_of_a_single_op_over_the_formats_range(runs, narrow):
    code, out, _ = narrow("show", runs / "bad", "--step", 1, "--op", GUILTY)
    assert code == 1
    assert "________----====" in out
    assert "2^-8" in out
    code, out, _ = narrow("show", runs / "good", "--step", 1, "--op", "activations/wpe/add")
    assert code == 0
    assert "times in bf16" in out


def test_show_runs_the_step_again_where_it_was_watched_less_closely(runs, narrow):
    code, out, _ = narrow("show", runs / "good", "--step", 1, "--sort", "err_u", "--json")
    assert code == 0
    rows = json.loads(out)
    assert rows[0]["err_u"] >= rows[1]["err_u"] > 0
    assert abs(sum(rows[0]["health"].values()) - 1) < 1e-12
    assert sum(rows[0]["histogram"]) > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--step", 9], "has no step 9 to replay: it has steps 0 to 2"),
        (["--step", 1, "--op", "nosuch"], "no op of that step matches 'nosuch'"),
        (["--step", 1, "--sort", "nosuch"], "no column 'nosuch' to sort by: expected one of zero"),
    ],
)
def test_show_says_what_it_cannot_use(runs, narrow, words, sentence):
    code, out, err = narrow("show", runs / "good", *words)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("columns", [80, 120])
def test_diff_names_the_first_abnormal_op_and_passes_a_healthy_step(runs, narrow, columns):
    code, out, err = narrow("diff", runs / "bad", "--step", 1, columns=columns)
    assert code == 1
    assert err == f"precsim: first abnormal op: {GUILTY}: generated here\n"
    assert "first bit difference: op 0 activations/wpe/add" in out
    code, out, err = narrow("diff", runs / "good", "--step", 1, columns=columns)
    assert (code, err) == (0, "")
    assert "propagated" not in out


def test_diff_has_the_first_abnormal_op_in_its_table(narrow, tmp_path):
    """Where the gradient vanishes more ops are off than a table has room for, most by more than it."""
    settings = ps.recipe("fp16").settings()
    ps.train(CONFIG.change(micro_batches=2**16, **settings), out=tmp_path / "run")
    code, out, err = narrow("diff", tmp_path / "run", "--step", 0)
    assert (code, err) == (1, f"precsim: first abnormal op: {GUILTY}: generated here\n")
    assert f"{GUILTY} " in out.partition("\n\n")[0]


def test_diff_against_another_policy_and_another_run(runs, narrow):
    words = ("diff", runs / "good", "--step", 1, "--against", UNIFORM, "--op")
    code, out, _ = narrow(*words, "gelu", "--json")
    assert code == 0
    assert [row["same_bits"] for row in json.loads(out)["rows"]] == [True]
    updates = json.loads(narrow(*words, "update/*/sqrt", "--json")[1])["rows"]
    assert updates
    assert not any(row["same_bits"] for row in updates)  # there the optimizer itself is in bf16
    masters = json.loads(narrow(*words, "apply_update", "--json")[1])["rows"]
    assert {row["path"].split("/")[0] for row in masters} == {"master_weights"}  # its: the weights
    code, out, err = narrow(*words, "apply_updates")
    assert (code, out) == (2, "")
    assert "no op of that step matches 'apply_updates'" in err
    code, out, _ = narrow("diff", runs / "good", runs / "bad", "--step", 1, "--json")
    assert code == 1
    found = json.loads(out)
    assert found["first_abnormal"]["path"].startswith("gradients/")
    assert {row["format"] for row in found["rows"]} == {"fp32", "e4m3"}


def test_blame_puts_the_guilty_op_first(runs, narrow):
    words = ("blame", runs / "bad", "--step", 1, "--op", "gradients/[lh]*")
    code, out, err = narrow(*words)
    assert code == 0
    assert err == "precsim: running the step 10 times, for 4 sites\n"
    rows = [line.split()[0] for line in out.splitlines() if line.startswith("gradients/")]
    assert rows[0] == GUILTY
    shares = json.loads(narrow(*words, "--json")[1])["shares"]
    assert [one["site"] for one in shares] == rows
    assert re.search(r"adds up to \d+% of total\^2, for 4 of \d+ sites \(", out)


def test_blame_of_all_ops_says_how_many_it_leaves_out(runs, narrow):
    words = ("blame", runs / "good", "--step", 1)
    out = narrow(*words)[1]
    shown = sum(re.search(r"^[a-z_]+/.*%$", line) is not None for line in out.splitlines())
    shares = json.loads(narrow(*words, "--json")[1])["shares"]
    assert (
        out.splitlines()[-1]
        == f"{shown} of {len(shares)} sites, the worst first; --op '*' shows all"
    )
    assert "errors add up" in out


def test_search_prints_a_policy_that_meets_the_tolerance(runs, narrow):
    words = ("search", runs / "bad", "--step", 1, "--tol", 0.5, "--op", "gradients/*")
    code, out, _ = narrow(*words, columns=5000)
    assert code == 0
    assert f"  {GUILTY}\n" in out
    printed = out.splitlines()[-1]
    policy = printed.removeprefix("policy = ").strip('"')
    assert ps.TrainConfig(policy=policy).policy == policy


@pytest.mark.parametrize(
    ("tolerance", "op", "code", "sentence"),
    [
        (0.01, "gelu", 1, "nothing found: all sites high still miss the tolerance"),
        (5, "gelu", 0, ""),
        (0, "gelu", 2, "search needs a tolerance > 0"),
        (0.1, "nosuch", 2, "no op of that step's gradient matches 'nosuch'"),
    ],
)
def test_search_says_why_it_finds_nothing(runs, narrow, tolerance, op, code, sentence):
    words = ("search", runs / "bad", "--step", 1, "--tol", tolerance, "--op", op)
    found, _, err = narrow(*words, columns=90)
    assert found == code
    assert sentence in err


def test_diff_says_what_it_cannot_use(runs, narrow, tmp_path):
    code, _, err = narrow("diff", runs / "good", "--step", 1, "--against", "fp17")
    assert code == 2
    assert "'fp17' is no recipe and no policy" in err
    assert narrow("diff", tmp_path, "--step", 1)[0] == 2
    ps.train(CONFIG.change(steps=1, width=4), out=tmp_path / "small")
    code, _, err = narrow("diff", runs / "good", tmp_path / "small", "--step", 1)
    assert code == 2
    assert "has a model of other sizes" in err
    assert "has no state before step 9" in narrow("diff", runs / "good", "--step", 9)[2]


@pytest.mark.parametrize("columns", [80, 120])
def test_whatif_finds_the_scale_that_saves_e4m3_from_the_recorded_exponents(runs, narrow, columns):
    code, out, err = narrow("whatif", runs / "bad", "--step", 1, columns=columns)
    assert (code, err) == (0, "")
    forward, backward = out.split("backward")
    assert "2^0*" in backward
    assert any(line.split()[:2] == ["bf16", "0%"] for line in forward.splitlines())
    found = json.loads(narrow("whatif", runs / "bad", "--step", 1, "--json")[1])["backward"]
    e4m3 = next(one for one in found if one["format"] == "e4m3")
    assert e4m3["losses"]["1.0"]["flushed"] > 0.9
    assert e4m3["best"] > 16
    assert e4m3["losses"]["256.0"]["flushed"] < 0.1


def settings(**changes):
    entries = {name: getattr(CONFIG, name) for name in ("data", "layers", "heads", "width")}
    entries |= {"context": CONFIG.context, "batch": CONFIG.batch} | changes
    return [word for name, value in entries.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.parametrize("columns", [80, 120])
def test_step_goes_forwards_and_backwards_and_says_what_broke(narrow, columns):
    words = settings(policy=E4M3, micro_batches=64)
    code, out, err = narrow("step", *words, columns=columns)
    assert code == 1
    assert err.startswith(f"precsim: first op in trouble: {GUILTY}: ")
    lines = out.splitlines()
    assert lines.index("forward") < lines.index("backward") < lines.index("update")
    assert "weight_gradients/wte/scatter_add" in out


def test_step_stops_at_the_op_in_trouble_and_shows_its_exponents(narrow):
    words = settings(policy=E4M3, micro_batches=64)
    code, out, _ = narrow("step", *words, "--stop")
    assert code == 1
    assert "update" not in out.splitlines()
    assert "________----====" in out
    stopped = json.loads(narrow("step", *words, "--stop", "--json")[1])
    assert stopped[-1]["path"] == GUILTY
    assert not any(row["complaint"] for row in stopped[:-1])


def test_a_healthy_step_passes_and_a_forward_overflow_stops_it(narrow, tmp_path):
    assert narrow("step", *settings(policy="fp32"), "--stop")[0] == 0
    config = tmp_path / "narrow.toml"
    config.write_text('policy = "activations=e2m10:ieee"\n')
    code, out, err = narrow("step", config, *settings(), "--stop")
    assert code == 1
    assert "overflowed" in err
    assert "backward" not in out.splitlines()


def test_step_says_what_it_cannot_use(narrow, tmp_path):
    for words in (["--recipe", "nosuch"], ["--set", "layers=0"], [tmp_path / "none.toml"]):
        code, out, err = narrow("step", *words)
        assert (code, out) == (2, "")
        assert err.startswith("precsim: ")


def test_tables_are_readable_in_ascii_without_colour(runs, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with pytest.raises(SystemExit) as stopped:
        main(["show", str(runs / "bad"), "--step", "1"])
    sys.stdout.flush()
    text = written.getvalue().decode("ascii")
    assert stopped.value.code == 1
    assert GUILTY in text
    assert "?" not in text


def test_diff_says_why_a_large_error_of_the_optimizer_is_ok(narrow, tmp_path):
    """The keys' bias has no gradient but for rounding, and Adam makes that as large as any."""
    policy = str(ps.recipe("torch_amp_fp16").policy)
    ps.train(CONFIG.change(policy=policy, loss_scale="static:1024"), out=tmp_path / "run")
    _, out, _ = narrow("diff", tmp_path / "run", "--step", 1)
    assert " update/" not in out  # where all is ok, errors in u are told of what is judged by them
    _, out, _ = narrow("diff", tmp_path / "run", "--step", 1, "--op", "update/*")
    assert "judged by what they lose, not by their error" in out


def test_diff_has_no_error_where_the_truth_is_zero(runs, narrow):
    """In e2m1 all these gradients are 0, and no error is relative to that."""
    words = (
        "diff",
        runs / "good",
        "--step",
        1,
        "--against",
        "gradients=e2m1 weight_gradients=e2m1",
    )
    _, out, _ = narrow(*words, "--op", "gradients/*")
    title, *lines = out.splitlines()
    assert title == "step 1 of good against itself under gradients=e2m1 weight_gradients=e2m1"
    rows = [line.split() for line in lines if "gradients/" in line]
    assert sum("-" in row for row in rows) > len(rows) / 2
    assert not any("inf" in row or "^" in row for row in rows)
    assert re.search(r"^\d+ ops have no error in u \(-\): their reference is 0", out, re.MULTILINE)


def test_diff_says_where_values_stop_being_finite(narrow, tmp_path):
    policy = str(ps.recipe("half").policy)
    ps.train(CONFIG.change(data="zen", policy=policy), out=tmp_path / "half")
    code, out, err = narrow("diff", tmp_path / "half", "--step", 0)
    assert code == 1
    assert "first not finite: op " in out
    assert "update/wte.weight/div" in err
