"""Counting what happened to numbers, one by one, in C: how many raised which flag.

Two questions are answered this way on a device, each in one pass over its memory: what
`precsim.formats.accounting` counts, and which updates moved a weight.  A block of threads adds up
what its threads found, and hands it over; counts are integers, so that the order makes no
difference.
"""

from __future__ import annotations

from dataclasses import fields

from precsim.backend.grid import THREADS
from precsim.backend.one_pass import PARAMETERS, ROUND, SIGNED, ZERO
from precsim.formats.accounting import Counts

ACCOUNTS = tuple(field.name for field in fields(Counts) if field.name != "n")
"""What `accounts` counts, in its order: names of `precsim.formats.accounting.Counts`."""
UPDATES = ("updates", "swamped")
"""What `updates` counts, in its order: names of `precsim.observe.counters.OpCounts`."""


def _kernel(name: str, parameters: str, flags: tuple[str, ...], of_one: str) -> str:
    """Return the code of a kernel that counts `flags`, which `of_one` computes for number i."""
    return f"""
PRECSIM_KERNEL {name}({parameters}, long long size, word64 *found) {{
    PRECSIM_SHARED word32 counts[{len(flags)}];
    PRECSIM_THREADS(t)
        if (t < {len(flags)}) counts[t] = 0;
    PRECSIM_WAIT
    PRECSIM_THREADS(t)
        word32 {", ".join(f"{flag}_ = 0" for flag in flags)};
        for (long long i = PRECSIM_BLOCK * {THREADS} + t; i < size; i += PRECSIM_BLOCKS * {THREADS}) {{
            int {", ".join(f"{flag} = 0" for flag in flags)};
            {of_one}
            {" ".join(f"{flag}_ += {flag};" for flag in flags)}
        }}
        {" ".join(f"PRECSIM_ADD(&counts[{k}], {flag}_);" for k, flag in enumerate(flags))}
    PRECSIM_WAIT
    PRECSIM_THREADS(t)
        if (t < {len(flags)} && counts[t]) PRECSIM_ADD(&found[t], (word64)counts[t]);
    PRECSIM_WAIT
}}
"""


def updates(real: str) -> str:
    """Return the code of `precsim_updates`: which updates are not zero, and which changed nothing."""
    parameters = ", ".join(f"const {real} *{name}" for name in ("weight", "delta", "rounded"))
    return _kernel(
        "precsim_updates", parameters, UPDATES,
        "updates = delta[i] != 0; swamped = updates && rounded[i] == weight[i];",
    )  # fmt: skip


def accounts(real: str) -> str:
    """Return the code of `precsim_accounts`: what rounding by a rule made of numbers.

    `exponents`: whether the format has any, and so tiny numbers.
    """
    parameters = (
        f"const {real} *before, const {real} *after, const word32 *words, int draws, int exponents, "
        + PARAMETERS
    )
    of_one = f"""
            double x = before[i], r = after[i], size = fabs(x), result = fabs(r);
            int number = x == x, finite = number && size - size == 0, negative = x < 0;
            word32 word = draws ? words[i] : 0;
            nan_created = number && r != r;
            nan_lost = !number && r == r;
            flushed = number && x != 0 && r == 0;
            subnormal = number && result > 0 && result < smallest_normal;
            saturated = number && !finite && result == largest;
            inexact = finite && x != r;
            if (finite && x != 0 && (!negative || flags & {SIGNED})) {{
                precsim_parts parts = precsim_cut(size, emin, man_bits);
                int up = 0;
                if (parts.dropped > 0) {{
                    double step = precsim_power(parts.binade - man_bits), lower = parts.kept * step;
                    up = precsim_goes_up(parts.rest, parts.dropped, (int)(parts.kept & 1), negative,
                                         word, mode, bits);
                    tie = lower <= largest && parts.dropped < 55
                          && (flags & {ZERO} || size >= smallest_normal)
                          && parts.rest == 1ull << (parts.dropped - 1);
                    overflow = (parts.kept + up) * step > largest;
                }} else {{
                    overflow = size > largest;
                }}
                saturated = overflow && result == largest;
                tiny_before = exponents && size < smallest_normal;
                if (tiny_before) {{  /* as if there were one more binade below */
                    parts = precsim_cut(size, emin - 1, man_bits);
                    up = parts.dropped > 0
                         && precsim_goes_up(parts.rest, parts.dropped, (int)(parts.kept & 1), negative,
                                            word, mode, bits);
                    tiny_after = parts.kept + up < 2ull << man_bits;
                }}
            }}"""
    return ROUND + _kernel("precsim_accounts", parameters, ACCOUNTS, of_one)
