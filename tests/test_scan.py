"""Scan: one step at every loss scale and in every format, run again each time."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from math import inf, isnan

import numpy as np
import pytest

import precsim as ps
from precsim.analyse.recorded import moment_at
from precsim.analyse.scan import Row, headroom, in_format, plateau, scan_formats, scan_scales

CONFIG = ps.TrainConfig(
    data="reverse", layers=1, heads=2, width=16, context=16, batch=4, steps=6, eval_every=6,
    micro_batches=2**14, observe="counts",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scan")
    for name in ("seed_mixed", "torch_amp_fp16"):
        policy = ps.recipe(name).policy
        ps.train(CONFIG.change(policy=str(policy)), out=folder / name)
    return folder


@pytest.fixture(scope="module")
def moment(runs):
    return moment_at(ps.open(runs / "seed_mixed"), 5)


def test_each_doubling_of_the_loss_scale_flushes_less_until_one_overflows(moment):
    rows = scan_scales(moment, range(0, 40, 3))
    flushed = [row.flushed for row in rows]
    finite = [row for row in rows if row.error < inf]
    assert flushed[0] > 0.05
    assert (np.diff(flushed[: len(finite)]) <= 0).all()
    assert finite[-1].flushed < 1e-3
    assert rows[0].error > 20 * finite[-1].error
    assert all(row.overflowed and row.error == inf for row in rows[len(finite) :])
    assert len(finite) < len(rows)
    assert rows[0].overflowed == 0


def test_a_row_is_what_the_step_does_at_that_scale(moment):
    (row,) = scan_scales(moment, [7])
    counters = ps.Counters()
    moment.at(scale=128.0).gradients(observers=[counters])
    backward = counters.total(phase="backward")
    assert row.scale == 128
    assert (row.flushed, row.subnormal) == (backward.flushed_share, backward.subnormal_share)


def test_no_loss_scale_matters_to_a_format_with_the_range_of_fp32(moment):
    wide = moment.at(policy=ps.Policy(gradients="bf16", weight_gradients="bf16"))
    errors = [row.error for row in scan_scales(wide, (-8, 0, 16, 32))]
    assert max(errors) == min(errors) > 0


def test_formats_in_the_place_of_the_low_one(moment):
    rows = {row.format: row for row in scan_formats(moment.at(scale=2.0**24))}
    assert rows["fp32"].error < rows["tf32"].error < rows["bf16"].error < rows["e5m2"].error
    assert rows["fp16"].error == pytest.approx(rows["tf32"].error, rel=0.5)
    assert rows["e2m1"].flushed > 0.5
    unscaled = {row.format: row.error for row in scan_formats(moment, ("fp16", "bf16", "e4m3"))}
    assert unscaled["fp16"] > rows["fp16"].error
    assert unscaled["bf16"] == rows["bf16"].error
    assert unscaled["e4m3"] == 1  # nothing is left of the gradient


def test_what_follows_its_operands_cannot_follow_shared_scales(runs):
    autocast = moment_at(ps.open(runs / "torch_amp_fp16"), 5)
    scaled, plain = scan_formats(autocast, ("int8:row", "bf16"))
    assert isnan(scaled.error)
    assert "no format among" in scaled.refused
    assert plain.error < inf
    assert plain.refused == ""


def test_the_low_formats_of_a_policy_are_replaced_and_no_others():
    policy = ps.Policy.parse(
        "weights=bf16 activations=widest gradients=e5m2:stochastic:saturate update=fp32 "
        "rule=op=matmul,inputs=e4m3:saturate rule=op=softmax,output=fp32"
    )
    changed = in_format(policy, "float16")
    assert str(changed) == str(
        ps.Policy.parse(
            "weights=fp16 activations=widest gradients=fp16:stochastic update=fp32 "
            "rule=op=matmul,inputs=fp16 rule=op=softmax,output=fp32"
        )
    )
    wide = in_format(ps.Policy(), "e5m2")
    assert wide == replace(
        ps.Policy(), activations="e5m2", gradients="e5m2", weight_gradients="e5m2"
    )


def rows_of(*errors):
    return [Row("", 2.0**k, 0.0, 0.0, 0, error) for k, error in enumerate(errors)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((5, 1.2, 1, 1.1, inf), (2, 8)),
        ((1, 1, 1), (1, 4)),
        ((1, 2, 1.1, 1.05), (1, 1)),
        ((inf, 3, inf), (2, 2)),
        ((inf, inf), None),
        ((), None),
    ],
)
def test_plateau_by_hand(errors, expected):
    assert plateau(rows_of(*errors)) == expected


def test_headroom_by_hand():
    rows = rows_of(5, 1.2, 1, 1.1, inf)
    assert headroom(rows, 4.0) == (1, 1)
    assert headroom(rows, 1.0) == (-1, 3)
    assert headroom(rows, 32.0) == (4, -2)
    assert headroom(rows_of(inf), 1.0) is None


def test_an_unknown_format_is_refused(moment):
    with pytest.raises(ValueError, match="unknown format 'fp99'"):
        scan_formats(moment, ["fp99"])


def test_command_line_marks_the_runs_own_scale_and_says_what_is_wrong_with_it(runs, narrow):
    code, out, err = narrow("scan", runs / "seed_mixed", "--step", 5)
    assert (code, err) == (0, "")
    own = next(line for line in out.splitlines() if line.startswith("2^0 *"))
    assert own.split()[-1] != "finite"
    assert "as good as the best: loss scales from 2^" in out
    named = [re.findall(r"2\^(-?\d+)", line[:16]) for line in out.splitlines() if line[:2] == "2^"]
    ends = [(int(scales[0]), int(scales[-1])) for scales in named]
    assert (ends[0][0], ends[-1][1]) == (-8, 32)
    gaps = [after[0] - before[1] for before, after in pairwise(ends)]
    assert gaps[:-1] == [1] * (len(gaps) - 1)
    assert (gaps[-1] > 1) is (".." in out.split())  # between the last two none is finite
    rows = json.loads(narrow("scan", runs / "seed_mixed", "--step", 5, "--json")[1])
    assert [row["scale"] for row in rows] == [2.0**k for k in range(-8, 33)]
    assert "the run's own, 1 (*), is too small" in out


def test_command_line_tries_formats(runs, narrow):
    code, out, _ = narrow("scan", runs / "torch_amp_fp16", "--step", 5, "--formats")
    assert code == 0
    assert any(line.split()[:1] == ["bf16"] for line in out.splitlines())
    assert "int8:row: no format among" in " ".join(out.split())
    code, out, _ = narrow("scan", runs / "seed_mixed", "--step", 5, "--json")
    assert (code, len(json.loads(out))) == (0, 41)


def test_command_line_refuses_a_step_that_is_not_there(runs, narrow):
    code, _, err = narrow("scan", runs / "seed_mixed", "--step", 77)
    assert code == 2
    assert "no state before step 77" in err
