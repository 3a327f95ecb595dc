"""Scratch memory is used again, never by two at once."""

import threading

import numpy as np

from precsim.formats.scratch import SLOT_BYTES, scratch


def test_a_slot_is_the_same_memory_again_and_another_slot_is_not():
    block = np.zeros(1000, np.float32)
    first, again, other = scratch("a", block), scratch("a", block[:10]), scratch("b", block)
    assert first.shape == (1000,)
    assert first.dtype == np.float32
    assert np.shares_memory(first, again)
    assert not np.shares_memory(first, other)
    assert not np.shares_memory(first, block)


def test_another_dtype_has_the_size_of_the_array_and_not_of_its_bytes():
    wide = scratch("a", np.zeros(100, np.float32), np.float64)
    assert (wide.dtype, wide.size) == (np.float64, 100)
    assert wide.__array_interface__["data"][0] % 64 == 0


def test_what_is_larger_than_a_block_is_new():
    large = np.zeros(SLOT_BYTES // 8 + 1)
    assert not np.shares_memory(scratch("a", large), scratch("a", large))


def test_threads_have_their_own():
    block, found = np.zeros(100), []
    thread = threading.Thread(target=lambda: found.append(scratch("a", block)))
    thread.start()
    thread.join()
    assert not np.shares_memory(found[0], scratch("a", block))


def test_a_part_of_an_array_gets_memory_of_its_shape_without_being_copied():
    part = np.arange(24.0).reshape(4, 6)[:, :5]
    room = scratch("part", part)
    assert room.shape == part.shape
    assert room.flags.c_contiguous
    assert not np.shares_memory(room, part)
    assert np.shares_memory(room, scratch("part", part.reshape(-1)))
