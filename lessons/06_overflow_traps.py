# %% [markdown]
# # 06 - Overflow traps: formulas that are right on paper
#
# **One idea.** In fp16 and in 8 bits, softmax, the loss and norms fail by range before they fail by
# rounding. Each formula has a twin that is equal on paper and stays inside the format.
#
# *You will* find the smallest input that breaks each textbook formula. *You learn* which lines of a
# model to look at first when fp16 gives NaN, or gives none, and why fused kernels are not among them.
#
# *Needs:* lesson 01 (the grid).
# *Runtime:* about 5 s, one CPU core.
# *Paper:* Micikevicius et al. 2018, arXiv:1710.03740, section 3.3: reductions in fp32.
# *Writes:* `figures/06_overflow_traps.png` (Three norms, equal on paper, in fp16: 0 or infinity at the ends.), `figures/06_one_step.png` (One step whose activations are large, op by op.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim import ops
from precsim.analyse.moment import relative_error
from precsim.lesson import check, exercise, moment_of, predict, save, seeds, show_step
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, GREEN, VERMILLION

POSITIVE = {
    fmt: np.array([v for v in ps.format(fmt).values() if v > 0])
    for fmt in ("fp16", "bf16", "e5m2", "e4m3")
}


def compute(formula, x, fmt="fp16"):
    """Return what a formula makes of x if each of its steps is rounded to a format."""
    with ps.using(fmt):
        return formula(ps.tensor(x)).numpy()


def first_failure(formula, fmt, sign=1):
    """Return the smallest x of a format for which formula([sign * x, 0]) is not finite."""
    x = POSITIVE[fmt]
    bad = ~np.isfinite(compute(formula, np.stack([sign * x, 0 * x], -1), fmt)).all(-1)
    return float(x[bad][0]) if bad.any() else np.inf


# %% [markdown]
# ## Softmax
# e^x / sum(e^x). In fp16 nothing is larger than 65504.
#
# **Predict.** A row of two logits, x and 0. From which x on is its softmax NaN in fp16?

# %%
my_guess = None


def softmax(x):
    e = ops.exp(x)
    return e / e.sum(-1, keepdims=True)


def shifted_softmax(x):
    return softmax(x - ops.amax(x, axis=-1))


fails = [first_failure(softmax, fmt) for fmt in POSITIVE]
predict("the smallest x at which fp16 softmax fails", my_guess, fails[0], tol=0.1)
check("fp16: from 11.09375, the first number above log 65504", fails[0] == 11.09375)
check("bf16 from 89, e5m2 from 12, e4m3 from 6.5", fails[1:] == [89, 12, 6.5], fails[1:])
safe = [np.isinf(first_failure(shifted_softmax, fmt)) for fmt in POSITIVE]
check("with the largest logit taken off, no input fails", safe)

# %% [markdown]
# No exponent is above 0 then; what is too small becomes zero, and does no harm beside a term of 1.
#
# ## The loss
# -log(p) of a p that became 0 is infinite. With z the shifted logit, log(sum(e^z)) - z is the same on
# paper, and takes no logarithm of anything below 1. Let the right logit lie x below the other:


# %%
def log_of_softmax(x):
    return -ops.log(shifted_softmax(x))


def log_sum_exp(x):
    z = x - ops.amax(x, axis=-1)
    return ops.log(ops.exp(z).sum(-1, keepdims=True)) - z


gap = first_failure(log_of_softmax, "fp16", -1)
check("fp16: -log p is infinite from a gap of 17.34 on", gap == 17.34375, gap)
at_17 = [compute(f, np.array([[-17.0, 0]]))[0, 0] for f in (log_of_softmax, log_sum_exp)]
check("at 17 it is 2 % off; log-sum-exp is right", at_17 == [16.640625, 17], at_17)
safe = [np.isinf(first_failure(log_sum_exp, fmt, -1)) for fmt in POSITIVE]
check("log-sum-exp fails for no input, in any of them", safe)

# %% [markdown]
# ## Norms
# x / sqrt(mean(x^2)) is about 1 whatever the x. Its square is not.
#
# **Predict.** For 64 equal numbers x, up to which x is fp16 right if it adds the squares, then divides?

# %%
my_guess = None


def sum_first(x):
    return x / ops.sqrt(ops.square(x).sum(-1, keepdims=True) * (1 / 64))


def divide_first(x):
    return x / ops.sqrt((ops.square(x) * (1 / 64)).sum(-1, keepdims=True))


def by_largest(x):
    return sum_first(x / ops.amax(x, axis=-1))


x = POSITIVE["fp16"]
NORMS = (by_largest, divide_first, sum_first)
norm = {f: compute(f, x[:, None] * np.ones(64))[:, 0] for f in NORMS}
predict("the largest x, sum first", my_guess, x[abs(norm[sum_first] - 1) < 0.1][-1], tol=1)
check("sum first: 32 gives 0, since 64 x 32^2 = 65536", norm[sum_first][x >= 32] == 0)
check("divide first: 256 gives 0, since 256^2 = 65536", norm[divide_first][x >= 256] == 0)
check("by the largest: right for every fp16 number", abs(norm[by_largest] - 1) < 0.01)

# %% [markdown]
# The worst of the traps: x / infinity is 0, a number like others. There is no NaN to find. Five more:

# %%
row = compute(shifted_softmax, np.full((1, 4), -1e9))
check("a mask of -1e9 is -infinity, and a row that is all mask gives NaN", np.isnan(row))
check("-65504 is no cure: add a score of -20", ps.quantize(-65504.0 - 20, "fp16") == -np.inf)
check("e4m3 has no infinity: -1e9 is NaN at once", np.isnan(ps.quantize(-1e9, "e4m3")))
check("an epsilon of 1e-8 is 0, and protects nothing", ps.quantize(1e-8, "fp16") == 0)
total = compute(lambda v: v.sum(), np.full(64, 1e4))
check("the sum of 64 times 10000 overflows, though their mean would fit", total == np.inf)
cube = first_failure(lambda v: ops.square(v) * v, "fp16")
check("x^3, in GELU's tanh form, overflows from 40.34 on", cube == 40.34375, cube)

# %% [markdown]
# ## One step
# Does a small GPT step into them? One step in fp16, with textbook formulas ("primitive") and with
# fused kernels, which are wide inside and round once. As it is, it does not. The knob is the size of
# the activations, which grow in training: multiply the embeddings by 2^k.

# %%
config = ps.TrainConfig(data="reverse", context=16, width=32, layers=1, heads=2, steps=1)
TEXTBOOK, FUSED = (ps.Policy.uniform("fp16", granularity=g) for g in ("primitive", "kernel"))
steps = {}
for seed in seeds(3):
    start = moment_of(ps.train(config.change(seed=seed)))
    for k in (0, 4, 8, 12):
        grown = {n: w * 2.0 ** (k * n.startswith("w")) for n, w in start.parameters.items()}
        step = steps[seed] = start.at(parameters=grown, policy=TEXTBOOK)
        off = [relative_error(step.gradients(p), step.reference()) for p in (TEXTBOOK, FUSED)]
        print(f"2^{k:<2} gradient off by {off[0]:.2g}, with fused kernels {off[1]:.2g}")
        check(f"seed {seed}: 2^{k}, fused: below 0.5 %", off[1] < 5e-3, off[1])
        check(f"seed {seed}: 2^{k}, textbook: a disaster only at 2^12", (off[0] > 0.5) == (k == 12))
nan = sum(op.counts.nan for op in show_step(steps[0], figure="06_one_step").ops)
check("and not one NaN, only infinities, which become 0", nan == 0, nan)

# %%
with plt.rc_context(RC | {"lines.linewidth": 2}):
    fig, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    for formula, hue in ((by_largest, GREEN), (divide_first, BLACK), (sum_first, VERMILLION)):
        axes.semilogx(x, norm[formula], base=2, color=hue)
    axes.text(2**-6, 1.08, "by the largest: right everywhere", color=GREEN)
    axes.text(28, 0.3, "sum, then divide:\n0 from 32 on", color=VERMILLION, ha="right")
    axes.text(300, 0.6, "divide, then sum:\n0 from 256 on", color=BLACK)
    axes.set(xlabel="size of the 64 numbers", ylabel="normalised", ylim=(-0.05, 1.5))
    axes.set_title("Three norms, equal on paper, in fp16: 0 or infinity at the ends")
save(fig, "06_overflow_traps", {"x": x[::64]} | {f.__name__: y[::64] for f, y in norm.items()})

# %% [markdown]
# ## Exercise
# A row of 2^k equal numbers, k from 0 to 12. What is the largest fp16 number for which neither a
# square nor the sum of the squares, each rounded to fp16, overflows? The specification tries all.


# %%
def by_trying(k):
    total = ps.quantize(ps.quantize(x * x, "fp16") * 2.0**k, "fp16")
    return x[np.isfinite(total)].max()


@exercise(spec=by_trying, strategy=lambda st: st.integers(0, 12))
def largest_without_overflow(k):
    raise NotImplementedError


# %% [markdown]
# **In practice.** For this reason autocast runs softmax, norms, losses, `exp`, `pow` and `sum` in fp32;
# fused kernels read fp16, work in fp32, and round once. What remains are formulas of one's own: a
# hand-written norm, a mask of -1e9, an epsilon copied from fp32. bf16 overflows where fp32 does.
#
# **On your own.** 1. Softmax with a temperature t: where do you divide? 2. Run the step at 2^12 with
# `rule=op=square,output=fp32`: is that enough? 3. Compute the variance as mean(x^2) - mean(x)^2.
#
# **Further reading.** Blanchard, Higham and Higham 2021, on log-sum-exp and softmax, IMA J. Numer.
# Anal. 41(4). PyTorch's list of ops that autocast to float32.
