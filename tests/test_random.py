"""Keyed randomness: the same bits whatever the chunking, the process, the thread, the backend."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precsim.backend import key, normal, tier, to_numpy, uniform, words

K = key(0, "block0.attn.softmax", 3, 0)

# Random123 1.14, tests/kat_vectors, the three lines "philox4x64 10": counter, key, output.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


@pytest.mark.parametrize(("counter", "the_key", "expected"), KNOWN_ANSWERS)
def test_numpy_gives_the_published_answers_one_counter_later(counter, the_key, expected):
    before = (sum(c << (64 * i) for i, c in enumerate(counter)) - 1) % 2**256
    philox = np.random.Philox(key=the_key[0] | the_key[1] << 64, counter=before)
    assert tuple(map(int, philox.random_raw(4))) == expected


def test_words_are_the_halves_of_numpys_stream_low_half_first():
    raw = np.random.Philox(key=np.array(K, np.uint64)).random_raw(50)
    halves = np.stack([raw & 0xFFFFFFFF, raw >> 32], axis=1).ravel()
    np.testing.assert_array_equal(words(K, 100), halves)


def test_compiled_words_are_numpys():
    pytest.importorskip("numba")
    from precsim.backend.fused_random import philox

    counter, the_key, expected = KNOWN_ANSWERS[0]
    assert tuple(map(int, philox(the_key, counter[0] - 1, 1))) == expected
    for the_key in (K, (0, 0), (2**64 - 1, 2**64 - 1)):
        for start in (0, 5, 8, 2**32 - 3, 2**60):
            with tier("numpy"):
                want = words(the_key, (31, 9), start), uniform(the_key, 100, start)
            with tier("numba"):
                got = words(the_key, (31, 9), start), uniform(the_key, 100, start)
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)


def test_uniform_and_normal_are_numpys_own():
    generator = np.random.Generator(np.random.Philox(key=np.array(K, np.uint64)))
    np.testing.assert_array_equal(uniform(K, (7, 5)), generator.random((7, 5)))
    generator = np.random.Generator(np.random.Philox(key=np.array(K, np.uint64)))
    np.testing.assert_array_equal(normal(K, (7, 5)), generator.standard_normal((7, 5)))


@given(cuts=st.lists(st.integers(0, 300), max_size=8))
def test_chunks_join_to_the_whole(cuts):
    edges = [0, *sorted(cuts), 300]
    for draw in (words, uniform):
        chunks = [draw(K, b - a, start=a) for a, b in pairwise(edges)]
        np.testing.assert_array_equal(np.concatenate(chunks), draw(K, 300))


def test_threads_draw_what_one_thread_draws():
    with ThreadPoolExecutor(4) as pool:
        chunks = pool.map(lambda a: words(K, 1000, start=a), range(0, 20_000, 1000))
    np.testing.assert_array_equal(np.concatenate(list(chunks)), words(K, 20_000))


def test_another_process_draws_the_same():
    code = (
        "from precsim.backend import key, words;"
        "print(words(key(-1, 'block0.mlp é', 12, 2), 4, start=5).tolist())"
    )
    env = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONUTF8": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(words(key(-1, "block0.mlp é", 12, 2), 4, start=5).tolist())


def test_the_bits_never_change():
    """Runs on disk rely on them: this fails if the key encoding or the stream is ever altered."""
    assert K == (7167543818455925598, 14563838637726705041)
    assert words(K, 3).tolist() == [29412100, 238041116, 2812853974]


@pytest.mark.parametrize(
    "other",
    [
        (1, "block0.attn.softmax", 3, 0),
        (0, "block1.attn.softmax", 3, 0),
        (0, "block0.attn.softmax", 4, 0),
        (0, "block0.attn.softmax", 3, 1),
        (0, "", 3, 0),
    ],
)
def test_neighbouring_keys_are_uncorrelated(other):
    n = 100_000
    a, b = uniform(K, n) - 0.5, uniform(key(*other), n) - 0.5
    # The correlation of independent draws is normal with deviation 1/sqrt(n): 4 of them.
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)
    assert abs(a.mean()) < 4 * np.sqrt(1 / 12 / n)


def test_every_bit_of_a_word_is_fair():
    n = 100_000
    bits = np.unpackbits(words(K, n).view(np.uint8)).reshape(n, 32)
    np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=5 / np.sqrt(4 * n))


def test_keys_are_told_apart_however_the_arguments_run_together():
    arguments = [(1, "", 23, 4), (12, "", 3, 4), (1, "2", 3, 4), (1, "4", 23, 4), (-1, "", 23, 4)]
    arguments += [(1, "23,4", 4, 4), (1, ",4", 23, 4), (1, "4,", 23, 4)]
    assert len({key(*a) for a in arguments}) == len(arguments)


@pytest.mark.parametrize("shape", [(), 0, 5, (0,), (3, 0, 2), (2, 3), (np.int64(4),)])
def test_shapes(cupy, shape):
    expected = np.empty(shape).shape
    for drawn in (
        words(K, shape),
        to_numpy(words(K, shape, xp=cupy)),
        uniform(K, shape),
        normal(K, shape),
    ):
        assert np.shape(drawn) == expected
    np.testing.assert_array_equal(words(K, shape).ravel(), words(K, int(np.prod(shape))))
    assert words(K, shape).dtype == np.uint32
    assert uniform(K, shape).dtype == np.float64


@pytest.mark.parametrize("bad", [0, (1,), (1, 2, 3), (-1, 0), (0, 2**64), (0.0, 1.0), [1, 2]])
def test_a_key_that_is_none_says_how_to_make_one(bad):
    for draw in (words, uniform, normal):
        with pytest.raises(ValueError, match=r"make one with precsim\.backend\.key"):
            draw(bad, 3)


def test_impossible_places_are_refused():
    with pytest.raises(ValueError, match="start to be 0 or more, got -1"):
        words(K, 3, start=-1)
    with pytest.raises(ValueError, match="every size in shape to be 0 or more, got -2"):
        uniform(K, (3, -2))
    with pytest.raises(TypeError):
        words(K, (2.5,))
    with pytest.raises(TypeError):
        key(0, "x", 1.0, 0)
