# %% [markdown]
# # 02 - Round once: why a simulator can be right, and how it goes wrong
#
# **One idea.** Hardware rounds the exact result of an operation once. A program that emulates it
# computes in a wider format first, which rounds too. Two roundings can differ from one; with 2p + 2
# bits on the way they never do.
#
# *You will* try every pair of numbers of e4m3 and e5m2, 375,000 sums, products and quotients, by way
# of a wider format. *You learn* which detours are safe, and to be wary of casts.
#
# *Needs:* lesson 01 (the grid).
# *Runtime:* about 2 s, one CPU core.
# *Paper:* Figueroa 1995, "When is double rounding innocuous?", SIGNUM Newsletter 30(3).
# *Writes:* `figures/02_round_once.png` (The sums of two e4m3 numbers that bf16 on the way gets wrong.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, predict, save
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import GREY, look

# %% [markdown]
# ## Two roundings
# Round 2.5 to a whole number, ties to the even one: 2. Round 2.4999: 2. Round 2.51 to one digit, 2.5,
# and then to a whole number: 2, although 2.51 is nearer to 3. The first rounding made a tie of what
# was none, and the tie fell on the wrong side. That is *double rounding*, and in binary it is the
# same.

# %%
x = 1 + 2.0**-8 + 2.0**-40  # a little above the middle between two numbers of bf16
once = ps.quantize(x, "bf16")
twice = ps.quantize(ps.quantize(x, "fp32"), "bf16")
print(f"{x!r} is {once} in bf16; by way of fp32 it is {twice}")
check("rounded once it goes up", once == 1 + 2.0**-7)
check("by way of fp32 it becomes a tie, and goes down", twice == 1)

# %% [markdown]
# ## Every pair
# e4m3 has 253 different numbers, 448 to -448. Take all pairs, and their sums, products and quotients
# in float64. Those of two numbers with 4 significant bits are either exact there or rounded with so
# many bits to spare that it does not matter, so `exact` below is what hardware would round. Then
# round it once, and by way of another format.


# %%
def numbers(fmt):
    return np.array(ps.format(fmt).values())


def operations(fmt):
    """Yield each operation's name and its results on all pairs, rows and columns in order."""
    a, b = numbers(fmt)[:, None], numbers(fmt)[None, :]
    with np.errstate(all="ignore"):
        yield "add", a + b
        yield "mul", a * b
        yield "div", a / b


def wrong(fmt, way):
    """Return, by operation, where rounding by way of `way` differs from rounding once."""

    def different(exact):
        once = ps.quantize(exact, fmt)
        twice = ps.quantize(ps.quantize(exact, way), fmt)
        return (once != twice) & ~(np.isnan(once) & np.isnan(twice))

    return {name: different(exact) for name, exact in operations(fmt)}


# %% [markdown]
# **Predict.** bf16 has 8 significant bits, twice as many as e4m3. How many of the 64,009 sums of two
# e4m3 numbers does it get wrong on the way?

# %%
my_guess = None  # a whole number

# %%
mistakes = {
    (fmt, way): {name: int(where.sum()) for name, where in wrong(fmt, way).items()}
    for fmt in ("e4m3", "e5m2") for way in ("fp32", "tf32", "fp16", "bf16")
}  # fmt: skip
predict("wrong sums of e4m3 by way of bf16", my_guess, mistakes["e4m3", "bf16"]["add"])
for (fmt, way), counts in mistakes.items():
    print(f"wrong in {fmt} by way of {way}:", *(f"{n:3} {name}" for name, n in counts.items()))
check("by way of fp32 or tf32 none is wrong", not any(
    sum(counts.values()) for (_, way), counts in mistakes.items() if way in ("fp32", "tf32")
))  # fmt: skip
check("e4m3 by way of bf16: 312 sums are", mistakes["e4m3", "bf16"]["add"] == 312)
check("e5m2 by way of bf16: none is", not sum(mistakes["e5m2", "bf16"].values()))

# %% [markdown]
# ## How many bits are enough?
# Figueroa proved it: for + - * / and the square root, a detour of p' significant bits does no harm to
# a target of p bits if **p' >= 2p + 2**. For e4m3, p = 4, that is 10: tf32 and fp16 have 11, fp32 has
# 24, and bf16 with its 8 is too narrow. e5m2 has p = 3 and needs 8: bf16 is just enough. (The detour
# must have the exponents, too: fp16, which ends at 65504, is no way to bf16.)


# %%
def narrowest_safe_way(fmt):
    """Return the fewest bits, at 11 exponent bits, from which on no pair of numbers goes wrong."""
    p = ps.format(fmt).precision
    bad = [n for n in range(p + 1, 2 * p + 4)
           if any(where.any() for where in wrong(fmt, f"e11m{n - 1}").values())]  # fmt: skip
    return max(bad) + 1


for fmt in ("e4m3", "e5m2"):
    least, enough = narrowest_safe_way(fmt), 2 * ps.format(fmt).precision + 2
    print(f"{fmt}: {least} bits are enough for + * /, and 2p + 2 is {enough}")
    check(f"{fmt}: 2p + 2 bits are enough", least <= enough, least)

# %% [markdown]
# So a simulator may compute an operation in fp32 and round the result to e4m3, bf16 or fp16 (p = 11,
# and 2 * 11 + 2 = 24): it has the bits that hardware would have. precsim's default goes by way of
# float64, which with its 53 bits is safe for fp32 as well. It does not hold for a fused multiply-add,
# an exponential, or a dot product: there "computed wide, rounded once" is the definition instead.

# %%
where = wrong("e4m3", "bf16")["add"]
a = numbers("e4m3")
first, second = np.nonzero(where)
larger = np.maximum(np.abs(a[first]), np.abs(a[second]))
smaller = np.minimum(np.abs(a[first]), np.abs(a[second]))
apart = np.log2(larger / smaller)
print(f"in the wrong sums one addend is 2^{apart.min():.1f} to 2^{apart.max():.1f} times the other")
check("it takes addends that are 16 times apart or more", apart.min() >= 4, apart.min())

with plt.rc_context(RC):
    fig, axes = plt.subplots(figsize=(WIDTH, WIDTH * 0.86), layout="constrained")
    axes.plot(second, first, "s", ms=3.4, color=look("e4m3").hue)
    shown = [-448, -1, -(2.0**-6), 0, 2.0**-6, 1, 448]
    places = [int(np.flatnonzero(a == v)[0]) for v in shown]
    labels = ["-448", "-1", "", "0", "", "1", "448"]
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    for place in places:
        axes.axhline(place, color=GREY, lw=0.4)
        axes.axvline(place, color=GREY, lw=0.4)
    axes.set(xlim=(0, 252), ylim=(0, 252), xlabel="a, all 253 numbers of e4m3 in order", ylabel="b",
             aspect="equal")  # fmt: skip
    axes.set_title("312 of 64,009 sums a + b are wrong by way of bf16", fontsize=14)
save(fig, "02_round_once", {"a": a[first], "b": a[second]})

# %% [markdown]
# ## Exercise
# 2p + 2 is for the worst of the operations, the square root. How many bits must a detour have so that
# no *sum* goes wrong, in formats of p significant bits with exponents enough? The specification tries
# all pairs of significands at all distances; find the formula.


# %%
def by_trying(p):
    whole = np.arange(2 ** (p - 1), 2**p, dtype=float)
    shifted = [sign * whole * 2.0**-k for k in range(2 * p + 4) for sign in (1, -1)]
    exact = np.array([np.add.outer(whole, addend) for addend in shifted])
    once = ps.quantize(exact, f"e11m{p - 1}")
    for bits in range(3 * p, p, -1):
        on_the_way = ps.quantize(exact, f"e11m{bits - 1}")
        if not np.array_equal(ps.quantize(on_the_way, f"e11m{p - 1}"), once):
            return bits + 1
    return p


@exercise(spec=by_trying, strategy=lambda st: st.integers(3, 6))
def bits_for_sums(p):
    raise NotImplementedError


# %% [markdown]
# **In practice.** Casting float64 to bf16 or fp8 goes by way of fp32 in ml_dtypes 0.6 and in PyTorch
# 2.13, and float64 to fp16 in PyTorch as well; NumPy's cast rounds once. So test a format against
# them with float32 inputs, or expect `twice` above. x87 processors of the 1980s computed everything
# with 64 bits and rounded again when storing; that is what Figueroa's theorem was for.
#
# **On your own.** 1. Find a float64 that fp16 gets wrong by way of fp32. 2. Count e4m3 by way of
# `"e8m8"` (9 bits) and `"e8m9"` (10). 3. `precsim verify --peers` lists who else rounds twice.
#
# **Further reading.** Figueroa 1995, theorems for each operation. Boldo and Melquiond 2008,
# "Emulation of FMA and correctly rounded sums", on rounding to odd, the detour that is always safe.
