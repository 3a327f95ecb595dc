"""The context: what a block changes, that it is restored however the block ends, and whose it is."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from threading import Barrier

import numpy as np
import pytest

import precsim as ps
from precsim.backend import to_numpy
from precsim.engine.context import walking
from precsim.engine.rule import PHASES


def test_outside_any_block_it_is_fp32_and_nobody_watches():
    context = ps.current()
    assert context.policy == ps.Policy()
    assert (context.observers, context.role, context.scope) == ((), "activations", "")
    assert (context.seed, context.step, context.taping) == (0, 0, True)


def test_what_is_not_named_stays_and_the_block_ends_as_it_began():
    before = ps.current()
    with ps.using("bf16", seed=3) as outer:
        assert ps.current() is outer
        with ps.using(scope="here", observers=[print]) as inner:
            assert (inner.policy, inner.seed) == (ps.Policy.uniform("bf16"), 3)
            assert (inner.scope, inner.observers) == ("here", (print,))
        assert ps.current() is outer
    assert ps.current() is before


def test_an_exception_restores_it():
    before = ps.current()
    with pytest.raises(KeyError), ps.using("fp16"), ps.scope("a"), ps.using(step=9):
        raise KeyError
    assert ps.current() is before


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"policy": "fp61"}, ValueError, "unknown format 'fp61'"),
        ({"observer": []}, TypeError, "observer"),
        ({"policy": "bf16", "sead": 1}, TypeError, "sead"),
        ({"role": "gradient"}, ValueError, "unknown role 'gradient'; expected .*, gradients, "),
        ({"observers": print}, TypeError, "a list of observers, .*; got <built-in function print>"),
    ],
)
def test_a_block_that_cannot_begin_changes_nothing(change, kind, message):
    before = ps.current()
    with pytest.raises(kind, match=message), ps.using(**change):
        pytest.fail("the block was entered")
    assert ps.current() is before


def test_scopes_nest_with_dots():
    with ps.scope("blocks.0"):
        with ps.scope("attn"):
            assert ps.current().scope == "blocks.0.attn"
        assert ps.current().scope == "blocks.0"
    assert ps.current().scope == ""


@pytest.mark.parametrize(("role", "phase"), PHASES.items())
def test_a_role_says_the_phase(role, phase):
    with ps.using(role=role) as context:
        assert context.phase == phase


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        ps.current().seed = 1


def test_a_new_step_or_seed_counts_calls_afresh_and_other_changes_do_not():
    with ps.using(step=1) as outer:
        x = ps.tensor(1.0)
        x + x
        assert outer.calls["activations//add"] == 1
        with ps.using("fp16", scope=""):
            x + x
        assert outer.calls["activations//add"] == 2
        for change in ({"step": 2}, {"step": 1}, {"seed": 5}):
            with ps.using(**change) as inner:
                x + x
                assert inner.calls["activations//add"] == 1
        assert outer.calls["activations//add"] == 2


def noise(seed):
    """Return stochastically rounded thirds, drawn while other threads draw theirs."""
    with ps.using("bf16:stochastic", seed=seed, step=0, scope=""):
        return [(ps.tensor(np.full(50, 1 / 3)) * 1.01).numpy() for _ in range(20)]


def test_threads_have_contexts_of_their_own():
    gate = Barrier(4, timeout=60)

    def run(seed):
        with ps.using(seed=seed + 100, scope=f"thread{seed}"):
            gate.wait()
            inside = noise(seed)
            gate.wait()
            assert (ps.current().seed, ps.current().scope) == (seed + 100, f"thread{seed}")
        return ps.current().seed, inside

    with ps.using("fp16", seed=77), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, range(4)))
        assert ps.current().seed == 77
    for seed, (outside, values) in enumerate(results):
        assert outside == 0, "a thread starts outside all blocks"
        np.testing.assert_array_equal(values, noise(seed))


def test_tasks_have_contexts_of_their_own():
    async def run(seed):
        with ps.using(seed=seed):
            await asyncio.sleep(0)
            return ps.current().seed

    async def both():
        return await asyncio.gather(*(run(seed) for seed in range(5)))

    assert asyncio.run(both()) == [0, 1, 2, 3, 4]


class Asks:
    """An observer that does without results before rounding."""

    def __init__(self, needs):
        self.needs, self.events = needs, []

    def __call__(self, event):
        self.events.append(event)


@pytest.mark.parametrize("name", ["e4m3", "fp32", "int8:row", "mxfp4"])
@pytest.mark.parametrize("others", [[], [lambda event: None]])
def test_who_asks_for_counts_gets_them_in_every_format(name, others):
    x = [[3.0, 0.0, -1e-9, 100.0]]
    counts, hist = Asks("counts"), Asks("hist")
    for asking in ([counts], [hist], [counts, hist]):
        with ps.using(name, observers=[*asking, *others]):
            ps.ops.mul(x, 1.0)
    for event in counts.events + hist.events:
        assert event.tally.zeros == 1
        assert (event.tally.amax, event.tally.amin) == (100, np.float64(1e-9))
        assert event.exact is None or (to_numpy(event.exact) == x).all()
    assert [e.tally.histogram is None for e in counts.events] == [True, False]
    for event in hist.events:
        assert event.tally.histogram.sum() == 3


@pytest.mark.parametrize("needs", ["histt", "", None, "tally"])
def test_an_observer_that_needs_what_there_is_not_is_told_what_there_is(needs):
    with pytest.raises(ValueError, match=r"Asks.* needs .*: expected exact, counts, hist"):
        ps.using("fp16", observers=[Asks(needs)])


def walk_and_fail():
    with ps.using(seed=7), walking(taping=False) as walk:
        for role, scope in [("gradients", "a"), ("update", "b"), ("gradients", "a")]:
            walk.to(role, scope)
            here = ps.current()
            assert (here.role, here.scope, here.seed, here.taping) == (role, scope, 7, False)
            with ps.using(scope="within"):
                assert ps.current().role == role
            assert ps.current() is here
        raise KeyError


def test_a_walk_goes_from_place_to_place_and_ends_where_it_began():
    before = ps.current()
    with pytest.raises(KeyError):
        walk_and_fail()
    assert ps.current() is before
