"""Health: shares of an op's results that add up to 1, and what is said of one in trouble."""

import pytest

from precsim.analyse.health import KINDS, Health, complaint
from precsim.observe.counters import OpCounts


def test_every_result_is_of_one_kind():
    row = OpCounts(
        n=100, zeros=10, flushed=20, subnormal=5, overflowed=3, saturated=4, nonfinite_in=8
    )
    health = Health.of(row)
    shares = [getattr(health, kind) for kind in KINDS]
    assert shares == pytest.approx([0.10, 0.20, 0.05, 0.50, 0.07, 0.08])
    assert sum(shares) == pytest.approx(1)


def test_no_result_is_of_no_kind():
    assert Health.of(OpCounts()) == Health(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"n": 8}, ""),
        ({"n": 8, "flushed": 4}, ""),  # half is not most
        ({"n": 8, "flushed": 5}, "62% flushed to zero"),
        ({"n": 8, "zeros": 6, "flushed": 2}, "100% flushed to zero"),  # zeros cannot be flushed
        ({"n": 8, "flushed": 8, "overflowed": 1}, "1 of 8 overflowed"),
        ({"n": 8, "overflowed": 3, "nonfinite_in": 2}, "2 of 8 not finite"),
        ({"n": 8, "saturated": 8}, ""),  # which is a rule, and not an accident
        ({"n": 8, "updates": 4, "swamped": 2}, ""),
        ({"n": 8, "updates": 4, "swamped": 3}, "75% of the updates lost"),
    ],
)
def test_what_is_wrong_with_an_op(counts, said):
    assert complaint(OpCounts(**counts)) == said


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ({"flushed": 8}, ""),
        ({"updates": 8, "swamped": 8}, ""),
        ({"flushed": 7, "overflowed": 1}, "1 of 8 overflowed"),
    ],
)
def test_what_chance_brings_back_is_not_wrong(counts, said):
    assert complaint(OpCounts(n=8, **counts), by_chance=True) == said
