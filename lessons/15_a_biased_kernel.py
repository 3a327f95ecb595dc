# %% [markdown]
# # 15 - A biased kernel: when every rounding is right and the sum is wrong
#
# **One idea.** Rounding to nearest is unbiased only if what is rounded falls anywhere between two
# numbers. Attention over equal keys makes sums that lie exactly in the middle, and a tiny remainder
# pushes all of them to the same side.
#
# *You will* find, with what the course has taught, why runs with a correct attention kernel can blow
# up: a fault that was reported for years and explained in 2025. *You learn* to ask of an error not
# only how large it is, but which way it points.
#
# *Needs:* lessons 02 (ties) and 04 (what cancels, and what adds up).
# *Runtime:* about 4 s, one CPU core.
# *Paper:* Qiu and Yao 2025, arXiv:2510.04212, section 3.3.2.
# *Writes:* `figures/15_a_biased_kernel.png` (The error of attention's output: one largest score, two, and the remedy.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, predict, quick, save, seeds
from precsim.show.canvas import QUIET, RC, WIDTH
from precsim.show.style import GREEN, GREY, VERMILLION

# %% [markdown]
# ## The kernel
# For one query, attention's output is the mean of the values V, weighted by exp(score). Kernels
# subtract the largest score m first (lesson 06), so that the largest weight is exp(0) = 1:
#
#     P = exp(S - m)      rounded to bf16
#     O = sum of P V      added up in fp32, then rounded to bf16
#
# The mean is O over the sum of P; only the rounding of O is looked at here. When two keys are alike,
# two scores are the largest, and both weights are exactly 1. The others are far below: here by 14 and
# more, so exp(-14), about 10^-6. The values of a trained model are often of one sign; here all are
# between -4 and -2.

# %%
ROWS, KEYS = 4_000 if quick() else 40_000, 64


def attention(rng, largest, gap=14.0, low=-4.0, high=-2.0, beta=1.0):
    """Return O before and after its last rounding, for ROWS queries.

    `largest` scores share the maximum, of which `beta` times is subtracted; others are `gap` below.
    """
    top = rng.uniform(2, 4, (ROWS, 1))
    scores = top - gap - rng.exponential(2, (ROWS, KEYS))
    scores[:, :largest] = top
    values = ps.quantize(rng.uniform(low, high, (ROWS, KEYS)), "bf16")
    weights = ps.quantize(np.exp(scores - beta * top), "bf16")
    exact = (weights * values).sum(axis=1)
    return exact, ps.quantize(exact, "bf16")


def error(exact, rounded):
    """Return the error of each output, in units of the gap between numbers there."""
    return (rounded - exact) / 2.0 ** (np.floor(np.log2(np.abs(exact))) - 7)


# %% [markdown]
# **Predict.** A rounding error is between -1/2 and +1/2 gap. What is its mean over 40,000 outputs,
# with two largest scores?

# %%
my_guess = None  # a number
CASES = {
    "one largest score": {"largest": 1},
    "two": {"largest": 2},
    "two, and values above 0": {"largest": 2, "low": 2.0, "high": 4.0},
    "two, and values of both signs": {"largest": 2, "low": -4.0, "high": 4.0},
    "two, the others nearer": {"largest": 2, "gap": 4.0},
    "two, the others out of reach": {"largest": 2, "gap": 200.0},
    "two, with beta = 2": {"largest": 2, "beta": 2.0},
}
found = {}
for seed in seeds(3):
    errors = {c: error(*attention(np.random.default_rng(seed), **how)) for c, how in CASES.items()}
    found = found or errors
    means = {case: float(e.mean()) for case, e in errors.items()}
    if seed == 0:
        predict("the mean error with two, in gaps", my_guess, means["two"], tol=0.03)
    for case, mean in means.items():
        print(f"seed {seed}, {case}: {mean:+.4f} gaps on average")
    two = means["two"]
    check(
        f"seed {seed}: with two it is -1/4", abs(two + 0.25) < 0.05, two, "Qiu and Yao 2025, 3.3.2"
    )
    check(f"seed {seed}: with one it is 0", abs(means["one largest score"]) < 0.03)
    check(f"seed {seed}: values above 0 turn it round", means["two, and values above 0"] > 0.2)

# %% [markdown]
# ## Why
# A value between 2 and 4 has the gap 2^-6 in bf16. The sum of two lies between 4 and 8, where the gap
# is 2^-5. So half of all sums are numbers of bf16, and half lie exactly in the middle between two:
# ties. To the even neighbour, they would go up as often as down.
#
# But the sum is not quite a tie. The other 62 keys add their 10^-6 of a value, negative as all values
# are. That decides every tie, and always for the lower neighbour. Half of the outputs are right, half
# are off by half a gap, all downward: a quarter of a gap on average.

# %%
spread = found["two"]
near_tie = np.abs(np.abs(spread) - 0.5) < 0.01
check("half of the errors are half a gap", abs(near_tie.mean() - 0.5) < 0.03, near_tie.mean())
check("all of those point the same way", np.all(spread[near_tie] < 0))
check("the other half are next to nothing", np.all(np.abs(spread[~near_tie]) < 0.01))

# %% [markdown]
# The other cases prove it by elimination. With values of both signs the remainders have both signs.
# With the others nearer, at 4 below, the remainder is many gaps: no ties to decide. With the others
# out of reach it is zero, and ties to even are fair. And if more than the maximum is subtracted, the
# weights are not 1, the products are not on the grid, and the sums fall anywhere: that is the paper's
# remedy, and mathematically the same attention.

# %%
for case in list(CASES)[3:]:
    check(f"{case}: no bias", abs(found[case].mean()) < 0.03, found[case].mean())

# %% [markdown]
# ## Why it matters
# Errors that point anywhere cancel: their mean over n outputs shrinks like 1 over the root of n
# (lesson 04). A bias does not shrink. In the paper it adds up, over thousands of steps of GPT-2, to
# spectral norms that grow until the loss explodes. That is too long for a lesson; the kernel's bias
# is its first link, and it shows in a second. So this lesson shows the cause and not the explosion.


# %%
def means_over(errors):
    """Return n, and the rms over groups of n outputs of their mean error."""
    n = 2 ** np.arange(0, int(np.log2(ROWS)) - 3)
    groups = [errors[: len(errors) // k * k].reshape(-1, k).mean(axis=1) for k in n]
    return n, np.array([np.sqrt(np.mean(g**2)) for g in groups])


n, biased = means_over(found["two"])
_, fair = means_over(found["two, with beta = 2"])
check("the mean of many outputs stays a quarter off", abs(biased[-1] - 0.25) < 0.03, biased[-1])
check("with the remedy it shrinks", fair[-1] < 4 / np.sqrt(n[-1]) * fair[0], fair[-1])

# %%
SHOWN = {"one largest score": GREY, "two": VERMILLION, "two, with beta = 2": GREEN}
with plt.rc_context(RC):
    fig = plt.figure(figsize=(WIDTH, 4.4), layout="constrained")
    grid = fig.add_gridspec(3, 2, width_ratios=(1.25, 1))
    edges, counts = np.linspace(-0.525, 0.525, 22), {}
    for row, (case, hue) in enumerate(SHOWN.items()):
        axes = fig.add_subplot(grid[row, 0])
        counts[case] = np.histogram(found[case], edges)[0] / ROWS
        axes.stairs(counts[case], edges, fill=True, color=hue)
        axes.axvline(found[case].mean(), color="#222222", lw=1.5, ls="dashed")
        top = counts[case].max() * (2.2 if "beta" in case else 1.05)
        axes.set(yticks=[], xlim=(-0.55, 0.55), ylim=(0, top), xticks=[-0.5, 0, 0.5])
        axes.spines["left"].set_visible(False)
        axes.text(0.52, top * 0.68, f"{case}:\nmean {found[case].mean():+.2f}", ha="right",
                  color=hue, fontsize=11.5)  # fmt: skip
        axes.tick_params(labelbottom=row == 2)
    axes.set_xlabel("error of an output, in gaps")
    right = fig.add_subplot(grid[:, 1])
    right.plot(np.log2(n), np.log2(biased), color=VERMILLION, lw=2.4)
    right.plot(np.log2(n), np.log2(fair), color=GREEN, lw=2.4)
    right.text(np.log2(n[-1]), -1.75, "two largest scores", ha="right", color=VERMILLION)
    right.text(7, -6.2, "beta = 2", ha="right", color=GREEN)
    right.set_yticks(range(-8, 0, 2), [f"$2^{{{k}}}$" for k in range(-8, 0, 2)])
    right.set_xticks(range(0, 13, 4), [f"$2^{{{k}}}$" for k in range(0, 13, 4)])
    right.set(xlabel="outputs that are averaged", ylim=(-8.5, -0.9))
    right.set_title("error of the mean", fontsize=12.5, weight="normal", color=QUIET)
    fig.suptitle("Right to half a gap, and wrong on average", x=0.01, ha="left", weight="bold")
save(fig, "15_a_biased_kernel",
     {"edges": edges, "n": n, "biased": biased, "fair": fair} | counts)  # fmt: skip

# %% [markdown]
# ## Exercise
# With k largest scores, k = 2, 4, 8, ..., the sum's remainder, in units of the sum's gap, is one of 0,
# 1/k, ..., (k-1)/k, all equally often. Every tie goes away from zero. What is the size of the mean
# error, in gaps? The specification adds them up; find the formula.


# %%
def by_adding(k):
    rests = np.arange(k) / k
    return float(np.mean(np.where(rests >= 0.5, 1 - rests, -rests)))


@exercise(spec=by_adding, strategy=lambda st: st.integers(1, 12).map(lambda e: 2**e))
def mean_error(k):
    raise NotImplementedError


# %% [markdown]
# **In practice.** FlashAttention in bf16 is what the paper dissects; its remedy changes m only where
# the maximum is repeated. Others round O later, or keep P in fp32. Tests of kernels compare the
# largest error with a tolerance, and none of the outputs above would fail one: test the mean as well.
#
# **On your own.** 1. Let 3 scores share the maximum. 2. Round O by chance, and look at the mean. 3. Do
# it in fp16, whose gaps are 8 times as small: how far must the others be?
#
# **Further reading.** Qiu and Yao 2025, section 3.3 and its worked example.
