"""Memory is used again only when nobody can see it any more."""

import gc
import weakref

import numpy as np

import precsim as ps
from precsim.engine.pool import SMALLEST, Pool

F32 = np.dtype(np.float32)
N = SMALLEST  # four times as many bytes as the smallest that a pool keeps


def place(array):
    return array.__array_interface__["data"][0]


def test_memory_comes_back_when_the_array_is_gone():
    pool = Pool()
    first = pool.empty((2, N), F32)
    assert first.shape == (2, N)
    assert first.dtype == F32
    assert first.flags.c_contiguous
    assert first.flags.writeable
    where = place(first)
    del first
    assert pool.waiting == 8 * N
    assert place(pool.empty((N,), np.dtype(np.float64))) == where  # the size decides
    assert pool.waiting == 8 * N  # and that array is gone as well


def test_a_view_keeps_the_memory_of_its_array():
    pool = Pool()
    array = pool.empty((2, N), F32)
    array[...] = 7
    views = [array[1], array.T[3:5].swapaxes(0, 1)[:, 0], array.view(np.int32), memoryview(array)]
    copies = [np.array(view) for view in views]
    del array
    while views:
        other = pool.empty((2, N), F32)
        other[...] = 0
        np.testing.assert_array_equal(views.pop(), copies.pop())
        del other
    assert pool.waiting == 16 * N


def test_what_waits_has_a_limit():
    pool = Pool(limit=16 * N)
    arrays = [pool.empty((N,), F32) for _ in range(6)]
    while arrays:
        arrays.pop()
        assert pool.waiting <= 16 * N
    assert pool.waiting > 0
    del arrays
    huge = pool.empty((5 * N,), F32)
    del huge
    assert pool.waiting == 0


def test_a_small_array_is_none_of_the_pools():
    pool = Pool()
    for shape in ((), (0,), (3, 0, 2), (3,)):
        assert pool.empty(shape, F32).shape == shape
    assert pool.waiting == 0


def test_a_pool_that_is_gone_leaves_its_arrays_alone():
    pool = Pool()
    array = pool.empty((N,), F32)
    array[...] = 3
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(array, np.full(N, 3, F32))


def test_an_observer_may_keep_what_it_sees():
    """All arrays of all events of two steps, copied at once, still are what they were."""
    kept = []

    def keep(event):
        kept.append((event.exact, event.rounded, event.exact.copy(), event.rounded.copy()))

    with ps.using("bf16", observers=[keep]):
        model = ps.GPT(ps.GPTConfig(layers=1, heads=2, width=32, context=32, vocabulary=11))
        ids = np.arange(16 * 32).reshape(16, 32) % 11
        for step in range(2):
            with ps.using(step=step):
                model.loss(ids, ids).backward()
            for parameter in model.parameters.values():
                parameter.grad = None
    assert any(exact.nbytes >= SMALLEST for exact, *_ in kept)
    for exact, rounded, exact_then, rounded_then in kept:
        np.testing.assert_array_equal(exact, exact_then)
        np.testing.assert_array_equal(rounded, rounded_then)
