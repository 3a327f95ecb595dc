"""``ps.observe``: what a block sees, where it stops, and that it changes nothing."""

import re
import warnings
from html.parser import HTMLParser
from io import StringIO

import numpy as np
import pytest
from tiny_runs import final, tiny

import precsim as ps
from precsim.observe.block import Observation, Seen
from precsim.show.observed import SHOWN


def small_loss():
    """Squares of 1, 2, 3 add up to 14; times 1e-8 the gradients are 2e-8, 4e-8, 6e-8."""
    x = ps.tensor([1.0, 2.0, 3.0], requires_grad=True)
    ((x * x).sum() * 1e-8).backward()
    return x.grad


def test_a_block_sees_forward_and_backward_in_order():
    with ps.using("fp16"), ps.observe() as obs:
        small_loss()
        with pytest.raises(ValueError, match="no number"):
            obs.worst(by="path")
    paths = [op.path for op in obs.ops]
    assert paths == [
        "activations/tensor/cast", "activations//mul", "activations//sum", "activations//mul",
        *paths[4:],
    ]  # fmt: skip
    assert all(path.startswith("gradients/") for path in paths[4:])
    (worst,) = obs.worst(1)
    assert (worst.path, worst.flushed, worst.n) == ("gradients//mul", 1, 1)
    assert obs.worst(1, by="n")[0].n == 3
    assert obs.worst(0) == []
    assert obs.total(phase="backward").flushed == sum(op.flushed for op in obs.ops[4:]) > 0


def test_outside_of_its_block_nothing_is_seen_and_a_second_block_adds():
    obs = ps.observe()
    for _ in range(2):
        with obs:
            ps.tensor([0.1]) + 1
        ps.tensor([0.1]) + 1
    assert [op.op for op in obs.ops] == ["cast", "add"] * 2


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"phase": "backward"}, lambda op: op.phase == "backward"),
        ({"role": "gradients"}, lambda op: op.role == "gradients"),
        ({"op": "matmul"}, lambda op: op.op == "matmul"),
        ({"op": "blocks.0.*"}, lambda op: op.scope.startswith("blocks.0.")),
        ({"format": "e4m3"}, lambda op: op.format == "e4m3"),
        ({"keep": lambda event: event.step == 1}, lambda op: op.step == 1),
        ({"phase": "forward", "op": "gelu"}, lambda op: op.op == "gelu" and op.phase == "forward"),
        ({"format": "fp64"}, lambda op: False),
    ],
)
def test_filters_keep_what_they_name(filters, expected):
    policy = "weights=bf16 activations=e4m3 gradients=e5m2 master_weights=fp32"
    with ps.observe() as everything:
        ps.train(tiny(steps=2, policy=policy))
    with ps.observe(**filters) as some:
        ps.train(tiny(steps=2, policy=policy))
    wanted = [(op.step, op.path, op.call) for op in everything.ops if expected(op)]
    assert [(op.step, op.path, op.call) for op in some.ops] == wanted
    assert len(wanted) < len(everything.ops)


def test_a_block_around_a_run_changes_no_bit(tmp_path):
    config = tiny(policy="fp16:stochastic")
    ps.train(config, out=tmp_path / "alone")
    with ps.observe("shadow") as obs:
        ps.train(config, out=tmp_path / "watched")
    assert obs.count > 100
    assert final(tmp_path / "watched") == final(tmp_path / "alone")


def test_levels(tmp_path):
    with ps.using("activations=bf16 arithmetic=fast"):
        for level, histogram, error, tensors in (
            ("counts", False, False, 0), ("hist", True, False, 0), ("shadow", True, True, 0),
            ("tensors:mul", True, True, 1),
        ):  # fmt: skip
            with ps.observe(level) as obs:
                ps.tensor([1.1, 3.3]) * 1.7
            (op,) = [op for op in obs.ops if op.op == "mul"]
            assert (op.histogram is not None) == histogram
            assert np.isfinite(op.err_u) == error
            assert len(obs.tensors) == tensors
    # 1.1 and 3.3 in bf16 are 1.1015625 and 3.296875; times 1.7, 1.87266 and 5.60469; bf16 again
    (product,) = obs.tensors.values()
    assert product.tolist() == [1.875, 5.59375]
    exact = np.array([1.1015625, 3.296875]) * float(np.float32(1.7))  # the carrier has no other
    error = np.linalg.norm(product - exact) / np.linalg.norm(exact)
    assert op.err_u == pytest.approx(error * 2**8)
    with ps.observe("off") as obs:
        ps.tensor([1.0]) + 1
    assert obs.ops == []
    with pytest.raises(ValueError, match="expected off, counts"):
        ps.observe("everything")
    with pytest.raises(ValueError, match="fp17"):
        ps.observe(format="fp17")
    with pytest.raises(ValueError, match="at least 1"):
        ps.observe(last=0)
    with pytest.raises(ValueError, match="unknown role 'gradient': expected one of activations"):
        ps.observe(role="gradient")


def test_a_breakpoint_ends_the_block_and_keeps_what_was_there():
    reached = []
    with ps.using("fp16"), ps.observe(stop=lambda op: op.flushed_share > 0.5) as obs:
        small_loss()
        reached.append("the end")
    assert reached == []
    assert obs.stopped.op.path == "gradients//mul"
    assert obs.stopped.op is obs.ops[-1]
    assert repr(obs.stopped) == "Stop(gradients//mul, step 0; see .op and .event)"
    assert obs.stopped.event.exact == 1e-8
    assert obs.stopped.event.rounded == 0
    with ps.observe(stop=lambda op: False) as obs:
        small_loss()
        reached.append("the end")
    assert reached == ["the end"]
    assert obs.stopped is None


def test_a_breakpoint_goes_through_a_recorded_run_which_can_be_resumed(tmp_path):
    config = tiny()
    ps.train(config, out=tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ps.observe("counts", stop=lambda op: op.step == 3) as obs:
            ps.train(config, out=tmp_path / "stopped")
    assert obs.stopped.op.step == 3
    assert ps.current().observers == ()
    ps.resume(tmp_path / "stopped")
    assert final(tmp_path / "stopped") == final(tmp_path / "whole")


def test_only_the_block_whose_breakpoint_it_is_ends():
    steps = []
    with ps.observe(stop=lambda op: op.op == "sum") as outer:
        with ps.observe(stop=lambda op: op.op == "exp") as inner:
            x = ps.tensor([1.0]) + 1
            steps.append("add")
            x.sum()
        steps.append("between")
    assert steps == ["add"]
    assert outer.stopped is not None
    assert inner.stopped is None


def test_errors_of_the_block_are_the_blocks():
    obs = ps.observe()
    with pytest.raises(ValueError, match="shapes"), obs:
        ps.tensor([1.0]) + ps.tensor([1.0, 2.0]) @ ps.tensor([1.0])
    assert obs.count > 0
    assert ps.current().observers == ()
    with pytest.raises(AttributeError), ps.observe(stop=lambda op: op.nothing):
        ps.tensor([1.0]) + 1


def test_the_newest_ops_are_kept():
    with ps.observe(last=3) as obs:
        for _ in range(5):
            ps.tensor([1.0]) + 1
    assert len(obs.ops) == 3
    assert obs.missed == obs.count - 3 > 0
    assert "not kept" in repr(obs)


def test_the_source_is_the_line_that_asked():
    with ps.observe() as obs:
        ps.tensor([1.0]) + 1
    assert re.fullmatch(r"(tests/)?test_block.py:\d+", obs.ops[-1].source)


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.cells, self.depth = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag in ("td", "th"):
            self.cells.append("")
            self.depth = 1

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.depth = 0

    def handle_data(self, data):
        if self.depth:
            self.cells[-1] += data


def test_tables_as_text_as_html_and_for_rich(monkeypatch):
    from rich.console import Console

    monkeypatch.setenv("COLUMNS", "100")
    with ps.using("fp16"), ps.observe() as obs:
        small_loss()
    worst = obs.worst(1)
    for text in (repr(worst), repr(obs.ops)):
        assert re.search(r"gradients//mul .*fp16 .*1 .*_+ .*100%", text)
    page = StringIO()
    Console(file=page, width=100).print(obs)
    assert page.getvalue().startswith("observe('hist'): ")
    assert "gradients//mul" in page.getvalue()
    cells = Cells(worst._repr_html_()).cells
    assert cells[:2] == ["op", "format"]
    assert cells[8].startswith("gradients//mul")
    assert cells[9:12] == ["fp16", "1", ""]
    assert 'aria-label="flushed 100%"' in worst._repr_html_()
    assert "observe(&#x27;hist&#x27;)" in obs._repr_html_()


def test_names_in_html_are_text():
    evil = Seen(path="<script>alert(1)</script>", format='"><b>', n=1)
    html = type(ps.observe().ops)([evil])._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html


def test_long_tables_say_how_much_more_there_is():
    with ps.observe() as obs:
        for _ in range(SHOWN + 5):
            ps.tensor([1.0]) + 1
    more = f"and {obs.count - SHOWN} more"
    assert more in repr(obs.ops)
    assert more in obs.ops._repr_html_()
    assert type(obs.ops[:3]) is type(obs.ops)
    assert len(obs.ops[:3]) == 3


def test_observe_is_an_observer_for_one_run_too():
    obs = Observation("counts", phase="update")
    ps.train(tiny(steps=1), observers=(obs,))
    assert {op.phase for op in obs.ops} == {"update"}
