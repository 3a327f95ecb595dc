# %% [markdown]
# # 01 - The grid: a format is a set of numbers
#
# **One idea.** A number format is a finite set of numbers. It has the same number of them between any
# two neighbouring powers of two; so the gap between numbers grows with the numbers, and a result that
# falls into a gap must move.
#
# *You will* list every number that eight bits can be, measure the gaps, and add 0.1 and 0.2 in seven
# formats. *You learn* to read a format's three figures: how fine it is, how small, how large.
#
# *Needs:* Python; nothing about floating point.
# *Runtime:* about 2 s, one CPU core.
# *Paper:* Micikevicius et al. 2022, arXiv:2209.05433, table 1: the two formats of 8 bits.
# *Writes:* `figures/01_the_grid.png` (How far apart the numbers of four formats are, beside their size.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, predict, save
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import GREY, look

# %% [markdown]
# ## Eight bits
# A code of 8 bits is one of 256 patterns, so a format of 8 bits has 256 numbers at most. In e4m3 the
# first bit is the sign, the next 4 are the *exponent* E, the last 3 the *fraction* F:
#
#     value  =  (-1)^sign  *  2^(E - 7)  *  (1 + F/8)        for E from 1 to 15
#     value  =  (-1)^sign  *  2^-6       *  (0 + F/8)        for E = 0: the *subnormal* numbers
#
# One pattern, E = 15 with F = 7, is kept for "not a number" (NaN). Let us write that out.

# %%
values = sorted(
    (2.0 ** (E - 7) * (1 + F / 8) if E else 2.0**-6 * F / 8)
    for E in range(16) for F in range(8) if (E, F) != (15, 7)
)  # fmt: skip
print("the first six:", *values[:6])
check("there are 127 of them from 0 up", len(values) == 127)
check("precsim has the same ones", values == ps.format("e4m3").values()[-127:])

# %% [markdown]
# **Predict.** 256 codes, half of them with a minus. How large is the largest number of e4m3?

# %%
my_guess = None  # a number

# %%
predict("the largest number of e4m3", my_guess, values[-1], tol=0)
print("the last ten: ", *values[-10:])
e4m3, e5m2 = ps.format("e4m3"), ps.format("e5m2")
source = "Micikevicius et al. 2022, table 1"
check("e4m3 goes up to 448", e4m3.max == values[-1] == 448, source=source)
check("its smallest normal number is 2^-6", e4m3.smallest_normal == 2.0**-6, source=source)
check("its smallest number is 2^-9", e4m3.smallest_subnormal == values[1] == 2.0**-9, source=source)
check("e5m2 goes up to 57344", e5m2.max == 57344, source=source)
check("its smallest normal number is 2^-14", e5m2.smallest_normal == 2.0**-14, source=source)
check("its smallest number is 2^-16", e5m2.smallest_subnormal == 2.0**-16, source=source)

# %% [markdown]
# One bit moved from the fraction to the exponent: 128 times as large at the top and as small at the
# bottom, for half the numbers in between. That is the trade of every format. For its size, look at
# the exponent bits; for its fineness, at the fraction bits.
#
# ## The gap
# Between 1 and 2 there are 8 steps in e4m3, so the gap is 1/8; between 2 and 4 there are 8 as well,
# so it is 1/4. The gap at x is the *unit in the last place*, ulp(x). Beside x itself it stays between
# 2^-4 and 2^-3, until we come to the subnormal numbers. They all are 2^-9 apart, so there the gap
# stays while x shrinks, and what is left of x is ever coarser.

# %%
binade = [x for x in values if 16 <= x <= 32]
print("from 16 to 32:", *binade)
check("from 16 to 32 there are 8 gaps of 2", set(np.diff(binade)) == {2.0})
for x in (1.0, 16.0, 2.0**-7, 2.0**-9):
    print(f"at {x:<12g} the gap is {e4m3.ulp(x):<12g} {e4m3.ulp(x) / x:.1%} of it")
check("at 16 the gap is an eighth of x", e4m3.ulp(16.0) / 16 == 1 / 8)
check("at 2^-9 it is all of x", e4m3.ulp(2.0**-9) / 2.0**-9 == 1)

# %% [markdown]
# A number that is not on the grid goes to the nearest that is, so it moves by half a gap at most:
# in the normal range a relative error of 2^-4 for e4m3. That bound is called u, *unit roundoff*.
#
# ## 0.1 + 0.2
# 0.1 is in none of these formats, nor are 0.2 and 0.3: in binary they have no last digit. Each goes
# to its nearest neighbour, and so does the sum. Whether 0.1 + 0.2 then *is* 0.3 is luck.
#
# **Predict.** In how many of fp64, fp32, tf32, fp16, bf16, e5m2 and e4m3 is it?

# %%
my_guess = None  # from 0 to 7


# %%
def adds_up(fmt):
    """Return whether 0.1 + 0.2 == 0.3, everything rounded to the format."""
    a, b, c = (float(ps.quantize(number, fmt)) for number in (0.1, 0.2, 0.3))
    return ps.quantize(a + b, fmt) == c


FORMATS = ("fp64", "fp32", "tf32", "fp16", "bf16", "e5m2", "e4m3")
yes = [fmt for fmt in FORMATS if adds_up(fmt)]
predict("formats, of 7, in which 0.1 + 0.2 == 0.3", my_guess, len(yes))
print("it is in", *yes)
check("it is in fp32, bf16 and e4m3, and not in the finer fp64", yes == ["fp32", "bf16", "e4m3"])

# %% [markdown]
# ## All of it in one picture
# The gap beside the number, for numbers of every size. Each line is a saw: from one power of two to
# the next the gap stays while x doubles. Left of its flat part a format runs out of exponents, and
# the gap grows until it is as large as x: what is smaller than half of that becomes zero. On the
# right the line ends at the largest number.

# %%
SHOWN = ("fp16", "bf16", "e5m2", "e4m3")
x = 2.0 ** np.linspace(-30, 20, 2501)
gaps = {}
for name in SHOWN:
    fmt = ps.format(name)
    inside = (x >= fmt.smallest_subnormal) & (x <= fmt.max)
    gaps[name] = np.where(inside, [fmt.ulp(v) / v for v in x], np.nan)

with plt.rc_context(RC):
    fig, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    for name in SHOWN:
        fmt, style = ps.format(name), look(name)
        axes.plot(np.log2(x), np.log2(gaps[name]), color=style.hue, lw=1.8)
        end = min(np.log2(fmt.max), 20)
        below = name == "e4m3"  # above it is e5m2's line
        axes.annotate(
            f"{name}, {fmt.man_bits} fraction bits", (end, -fmt.man_bits - below),
            xytext=(0, -6 if below else 4), textcoords="offset points", ha="right",
            va="top" if below else "bottom", color=style.hue, weight="bold",
        )  # fmt: skip
        if fmt.max < x[-1]:
            axes.plot(end, -fmt.man_bits - 1, "o", color=style.hue, ms=7)
    axes.axhline(0, color=GREY, lw=1, ls="dotted")
    axes.text(-29.5, 0.15, "the gap is as large as the number", color=GREY)
    axes.set(xlim=(-30, 20.5), ylim=(-12, 1.2), xlabel="number")
    axes.set_xticks(range(-30, 21, 10), [f"$2^{{{k}}}$" for k in range(-30, 21, 10)])
    axes.set_yticks(range(-12, 1, 3), [f"$2^{{{k}}}$" for k in range(-12, 1, 3)])
    axes.set_title("The gap to the next number, beside the number")
save(
    fig,
    "01_the_grid",
    {"log2 of the number": np.log2(x[::10])} | {n: g[::10] for n, g in gaps.items()},
)

# %% [markdown]
# ## Exercise
# Every format can count: 1, 2, 3, ... up to where the gap becomes 2. Which is the first whole number
# that a format with `man_bits` fraction bits has not? (Take one with exponents enough.) The
# specification counts; find the formula.


# %%
def by_counting(man_bits):
    n = 1
    while ps.quantize(float(n), f"e8m{man_bits}") == n:
        n += 1
    return n


@exercise(spec=by_counting, strategy=lambda st: st.integers(1, 10))
def first_that_is_missing(man_bits):
    raise NotImplementedError


# %%
check("it is 9 in e5m2", by_counting(2) == 9)
check("17 in e4m3", by_counting(3) == 17)
check("257 in bf16", by_counting(7) == 257)
check("2049 in fp16", by_counting(10) == 2049)

# %% [markdown]
# **In practice.** The name e4m3 does not say everything. With infinities, as IEEE 754 would have it,
# its largest number is 240; NVIDIA, Arm and Intel (and OCP) gave them up for one binade more, 448;
# AMD's MI300 and Graphcore have a third variant. precsim's `e4m3_ieee`, `e4m3` and `e4m3fnuz` are
# these three, and `precsim formats` lists the rest. bf16 is the upper half of an fp32 code.
#
# **On your own.** 1. `precsim num 0.1 --format e4m3` puts one number under the microscope.
# 2. Plot `"e4m3fnuz"` as well. 3. Spell a format of your own: `ps.format("e6m9")`.
#
# **Further reading.** Micikevicius et al. 2022, section 3, on why e4m3 has no infinities. Goldberg
# 1991, "What every computer scientist should know about floating-point arithmetic", section 1.
