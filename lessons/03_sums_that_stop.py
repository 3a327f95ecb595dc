# %% [markdown]
# # 03 - Sums that stop: adding small to large
#
# **One idea.** A running total grows, and the gap between numbers grows with it. Once the gap is more
# than twice the next addend, the total stops, however many addends are still to come.
#
# *You will* add up a series that diverges and see it converge, add 65,536 numbers and lose most
# of them, and win them back in three ways. *You learn* why the order of a sum, and the
# width of its total, matter more than the format of what is added.
#
# *Needs:* lesson 01 (the grid).
# *Runtime:* about 15 s, one CPU core.
# *Paper:* Wang et al. 2018, arXiv:1812.08011, section 4.1 and figure 3b.
# *Writes:* `figures/03_sums_that_stop.png` (A running total that stops, and the chunk that saves it.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, predict, quick, save, seeds
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, look

# %% [markdown]
# ## A series that stops
# 1 + 1/2 + 1/3 + ... grows beyond every bound, as everybody learns who learns about series. In a
# format it does not: the terms become small, the total does not.


# %%
def harmonic(fmt):
    """Return after how many terms the total stands still, and where."""
    total, n = 0.0, 1
    while (longer := float(ps.quantize(total + float(ps.quantize(1 / n, fmt)), fmt))) != total:
        total, n = longer, n + 1
    return n, total


for fmt in ("e5m2", "e4m3", "bf16", "fp16"):
    n, total = harmonic(fmt)
    print(f"{fmt}: term {n} changes nothing any more; the total is {total}")
check("e4m3 stops at 3", harmonic("e4m3")[1] == 3.0)
check("bf16 stops at the 65th term, at 5.0625", harmonic("bf16") == (65, 5.0625))
check("fp16 stops at the 513th, at 7.0859375", harmonic("fp16") == (513, 7.0859375))

# %% [markdown]
# ## 65,536 numbers about 1
# That is the experiment of Wang et al.: numbers uniform with mean 1 and standard deviation 1, added
# one by one. Their format has 6 exponent and 9 fraction bits. (IEEE's fp16 cannot hold the result,
# 65536.) The largest addend is 1 + sqrt(3), about 2.7.
#
# **Predict.** What is the total, added one by one in that format?

# %%
my_guess = None  # a number

# %%
N = 2**14 if quick() else 2**16
FORMAT = "e6m9"


def addends(seed):
    return 1 + np.random.default_rng(seed).uniform(-np.sqrt(3), np.sqrt(3), N)


def running(x, fmt):
    """Return the totals along the last axis, rounded after each addition."""
    total, totals = np.zeros(x.shape[:-1]), np.empty(x.shape)
    for i in range(x.shape[-1]):
        totals[..., i] = total = ps.quantize(total + x[..., i], fmt)
    return totals


def in_chunks(x, chunk, fmt):
    """Add up every `chunk` addends, and then the sums."""
    return running(running(x.reshape(-1, chunk), fmt)[:, -1], fmt)[-1]


def error(total, x):
    return abs(total - x.sum()) / x.sum()


data = {seed: ps.quantize(addends(seed), FORMAT) for seed in seeds(3)}
one_by_one = running(np.stack(list(data.values())), FORMAT)
predict("the total, one by one", my_guess, float(one_by_one[0, -1]), tol=0)
for seed, total in zip(data, one_by_one[:, -1], strict=True):
    check(f"seed {seed}: it is 4096", total == 4096, source="Wang et al. 2018, figure 3b")

# %% [markdown]
# From 4096 to 8192 numbers are 8 apart: from 4096 on an addend of 4 or less is not noticed.
#
# ## Three ways out
# 1. **Chunks.** Add up 64 numbers, begin afresh, and then add up the sums. No total ever meets an
#    addend that is much smaller.
# 2. **Pairs.** Add neighbours, then neighbouring sums, and so on: addends of one size at each level.
# 3. **Kahan's correction.** Keep in a second number what the last addition lost, and put it to the
#    next addend.


# %%
def in_pairs(x, fmt):
    while len(x) > 1:
        x = ps.quantize(x[::2] + x[1::2], fmt)
    return x[0]


def kahan(x, fmt):
    total = lost = 0.0
    for addend in x:
        wanted = ps.quantize(addend - lost, fmt)
        longer = ps.quantize(total + wanted, fmt)
        lost = ps.quantize(ps.quantize(longer - total, fmt) - wanted, fmt)
        total = longer
    return total


for seed, x in data.items():
    found = {"chunks of 64": in_chunks(x, 64, FORMAT), "pairs": in_pairs(x, FORMAT),
             "Kahan": kahan(x, FORMAT)}  # fmt: skip
    for way, total in found.items():
        print(f"seed {seed}, {way}: {total:.0f} in place of {x.sum():.0f}")
        off = error(total, x)
        check(f"seed {seed}: {way} is off by less than 2 %", off < 0.02, off)

# %% [markdown]
# ## How long should a chunk be?
# Very short chunks leave many sums to be added, and those stop; very long ones stop themselves. In
# between, at about the square root of the count, neither does. bf16 has two bits fewer, and for it
# there is no more than one good length among these.

# %%
LENGTHS = [4, 16, 64, 256, 1024, 4096, 16384]
x = data[0]
WAYS = (FORMAT, "bf16")
by_length = {fmt: [error(in_chunks(x, n, fmt), x) for n in LENGTHS] for fmt in WAYS}
print("length", *(f"{n:8}" for n in LENGTHS))
for fmt, errors in by_length.items():
    print(f"{fmt:6}", *(f"{e:8.1%}" for e in errors))
check("chunks of 64 and 256 are good in 6 + 9 bits", max(by_length[FORMAT][2:4]) < 0.02)
check("chunks of 4 lose more than 40 %", by_length[FORMAT][0] > 0.4, by_length[FORMAT][0])
if not quick():  # fewer numbers, more good lengths
    check("in bf16 only 256 is good", sorted(by_length["bf16"])[1] > 0.05 > by_length["bf16"][3])

# %%
with plt.rc_context(RC):
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.2), layout="constrained")
    n = np.unique(np.logspace(0, np.log2(N), 200, base=2).astype(int)) - 1
    left.plot(np.log2(n + 1), np.log2(np.cumsum(x)[n]), color=BLACK, lw=1.5)
    left.plot(np.log2(n + 1), np.log2(one_by_one[0][n]), color=look(FORMAT).hue, lw=2.6)
    left.text(10.6, 13.4, "exact", color=BLACK, ha="right")
    left.text(16.2, 11.4, "stops\nat 4096", color=look(FORMAT).hue, va="top", ha="right")
    ticks = range(0, 17, 4)
    left.set_xticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
    left.set_yticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
    left.set(xlabel="numbers added", xlim=(3, 16.4), ylim=(3, 16.5))
    left.set_title("The total")
    for fmt, name, at in ((FORMAT, "6 + 9 bits", (0.2, 0.27)), ("bf16", "bf16", (7, 0.62))):
        right.plot(np.log2(LENGTHS), by_length[fmt], "o-", color=look(fmt).hue, lw=2, ms=5)
        right.text(*at, name, color=look(fmt).hue)
    right.set_xticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
    right.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    right.set(xlabel="length of a chunk", ylim=(-0.02, 1.04))
    right.set_title("Relative error")
save(fig, "03_sums_that_stop",
     {"n": n + 1, "total": one_by_one[0][n], "length": LENGTHS} | by_length)  # fmt: skip

# %% [markdown]
# ## Exercise
# Count `n` ones in chunks of `chunk` in a format of p significant bits; `n` and `chunk` are powers
# of two, p is any number. What is the result? The specification counts; find the formula.


# %%
def by_counting(n, chunk, p):
    return float(in_chunks(np.ones(n), chunk, f"e8m{p - 1}"))


def cases(st):
    sizes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(2, 5))
    return sizes.map(lambda t: (2 ** max(t[:2]), 2 ** min(t[:2]), t[2]))


@exercise(spec=by_counting, strategy=cases)
def count_in_chunks(n, chunk, p):
    raise NotImplementedError


# %% [markdown]
# **In practice.** Tensor cores keep the running total in more bits than the operands have (lesson
# 05); NumPy's `sum` adds in pairs, PyTorch's reductions of half tensors add in fp32. What does not is
# a sum that is spread over steps: gradients accumulated in bf16 over many micro-batches, a moving
# average, and the weights themselves, to which small updates are added (lesson 10). The mean of the
# addends matters: numbers of both signs hardly grow a total, and then nothing stops.
#
# **On your own.** 1. Give the addends mean 0. 2. Sort them first, small to large. 3. Round the totals
# with `rounding="stochastic"`, which is lesson 04.
#
# **Further reading.** Wang et al. 2018, section 4.1. Higham 1993, "The accuracy of floating point
# summation", for the bounds of every order.
