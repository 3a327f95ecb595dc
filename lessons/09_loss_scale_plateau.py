# %% [markdown]
# # 09 - The loss-scale plateau: why one number works for so many models
#
# **One idea.** A loss scale has two edges. Too small, and gradients underflow; too large, and they
# overflow. Between the edges it makes no difference at all, and they are far apart.
#
# *You will* train one small model in fp16 at scales from 2^-20 to 2^20, then let the scale find its
# own place. *You learn* what each edge is made of, and to predict the right one from a single step.
#
# *Needs:* lesson 08 (where gradients live).
# *Runtime:* about 30 s, one CPU core.
# *Paper:* Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
# *Writes:* `figures/09_loss_scale_plateau.png` (The loss scale matters at its edges only.), `figures/09_one_step.png` (One step, and the room above its gradients.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.analyse.scan import scan_scales
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, GREY, VERMILLION, look

# %% [markdown]
# ## The bench
# The model reads eight digits and writes them backwards. Everything that the step computes is fp16,
# except what mixed precision keeps in fp32: the master weights, the optimizer, the loss, and S
# itself, which is the gradient of the scaled loss with respect to the loss. A step with an infinity
# or a NaN in its gradients is skipped. `backoff=1` keeps S where it is afterwards.

# %%
WHO = "Micikevicius et al. 2018, section 3.2"
STEPS, FP32 = 80 if quick() else 150, "arithmetic=fast"
FP16 = (
    "activations=fp16 gradients=fp16 weight_gradients=fp16 weights=fp16 master_weights=fp32 "
    "rule=op=cross_entropy,output=fp32 rule=scope=loss.scale,output=fp32 arithmetic=fast"
)
base = ps.TrainConfig(
    data="reverse", context=16, width=32, layers=1, heads=2, batch=32, steps=STEPS, lr=3e-3,
    warmup=1, schedule="constant", eval_every=STEPS, observe="off",
)  # fmt: skip


def train(policy, scale="none", seed=0):
    run = ps.train(base.change(policy=policy, loss_scale=scale, seed=seed))
    return run, run.final_loss(), int(run.steps["skipped"].sum())


def fixed(k, seed=0):
    return train(FP16, f"dynamic:{2.0**k}:{10 * STEPS}:backoff=1", seed)


# %% [markdown]
# ## The right edge, from one step
# The largest finite fp16 number is 65504. If the largest gradient of a step is g, S times g fits as
# long as S is at most 65504 / g. One step in fp32 tells g. (The backward pass starts from a 1; that
# is no gradient of the model's.)

# %%
edge = {}
for seed in seeds(3):
    rows = []
    first = base.change(policy=FP32, steps=1, eval_every=1, observe="counts", seed=seed)
    ps.train(first, on_step=lambda record, counts, rows=rows: rows.extend(counts))
    backward = [row for row in rows if row.phase == "backward" and row.scope != "seed"]
    edge[seed] = np.log2(65504 / max(row.amax for row in backward))

# %% [markdown]
# **Predict.** S is a power of two, 2^k. What is the largest k at which no step is skipped?

# %%
my_guess = None  # an integer
FEW = (-16, -12, 0, 17, 18, 19)
EXPONENTS = FEW if quick() else (-20, -16, -14, -12, -10, -8, -4, 0, 8, 16, 17, 18, 19, 20)
exact, fp32, _ = train(FP32)
runs = {k: fixed(k) for k in EXPONENTS}
predict("the largest k without a skip", my_guess, max(k for k, (*_, n) in runs.items() if not n))
for k, (_, loss, skipped) in runs.items():
    print(f"S = 2^{k:<4} loss {loss:.4f}   {skipped:3} of {STEPS} steps skipped")

# %% [markdown]
# ## What happened
# From 2^0 to 2^17 the loss is that of fp32 to within 1 %. To the left it gets worse by degrees, and
# ends at a model that has learnt nothing; to the right it falls off a cliff, at the edge that a
# single step predicted. At 2^18 some batches overflow (with seed 0, most); the others still teach.
#
# The left side starts below S = 1: **at this size fp16 trains without any loss scaling.** A scale of
# 2^-12 stands in for a larger model: the loss is a mean, so with 4096 times as many tokens in a batch
# each token's gradient is 4096 times smaller. Gradients shrink as the loss does; that is why this run
# learns at first, and stops at a loss of about 0.02, where fp16 has no more numbers for them.

# %%
for seed in seeds(3):
    own = runs if seed == 0 else {k: fixed(k, seed) for k in FEW}
    right = fp32 if seed == 0 else train(FP32, seed=seed)[1]
    ratio = {k: loss / right for k, (_, loss, _) in own.items()}
    none, some, every = (own[k][2] for k in (17, 18, 19))
    flat = max(abs(ratio[k] - 1) for k in (0, 17))
    steps = none == 0 < some < STEPS == every
    check(f"seed {seed}: at 2^17 no step is skipped, at 2^18 some, at 2^19 all", steps, some)
    check(f"seed {seed}: as one step predicted", 17 <= edge[seed] < 18, edge[seed])
    check(f"seed {seed}: on the plateau the loss is fp32's within 1 %", flat < 0.01, flat, WHO)
    check(f"seed {seed}: at 2^-12 it is 3 to 8 times that", 3 < ratio[-12] < 8, ratio[-12])
    check(f"seed {seed}: at 2^-16 nothing is learnt", ratio[-16] > 100, ratio[-16])

# %% [markdown]
# ## One step
# The next step of the fp32 run, computed in fp16 at every scale from the same weights and the same
# batch: how many results of its backward pass became zero, and how far is its gradient from
# float64's? Its plateau lies further right: late gradients are small. Then S = 1, op by op.

# %%
moment = moment_of(exact, FP16)
at = {round(np.log2(row.scale)): row for row in scan_scales(moment, range(-12, 29, 4))}
for k, row in at.items():
    print(f"S = 2^{k:<4} {row.flushed:6.1%} became zero, error of the gradient {row.error:.2g}")
check("S = 1: more than 5 % of its results become zero", at[0].flushed > 0.05, at[0].flushed)
check("and yet the gradient is right to 3 %", at[0].error < 0.03, at[0].error)
check("S = 2^-12: more than half of it is wrong", at[-12].error > 0.5, at[-12].error)
check("S = 2^12, even 2^24: right to 0.5 %", max(at[12].error, at[24].error) < 0.005, at[24].error)
step = show_step(moment, figure="09_one_step")

# %% [markdown]
# ## Letting the scale look for its place
# A dynamic scale needs no guess. It halves S and skips the step on overflow, and doubles S after a
# number of clean steps; 20 here, 2000 in PyTorch.
#
# **Predict.** It starts at 2^30. How many of the 150 steps are skipped?

# %%
my_guess = None  # an integer
dynamic = {k: train(FP16, f"dynamic:{2.0**k}:20") for k in (0, 16, 24, 30)}
n = {k: skipped for k, (_, _, skipped) in dynamic.items()}
predict(f"skipped of {STEPS} steps, from 2^30 on", my_guess, n[30])
worst = max(loss for _, loss, _ in dynamic.values()) / fp32
most = 2.5 if quick() else 1.5  # a shorter run has lost more of its steps
check(f"wherever it starts, the loss ends below {most} times fp32's", worst < most, worst)
check("skipped: none from 2^16, 4 to 14 from 2^24", n[16] == 0 and 4 <= n[24] <= 14, n)
check("from 2^30 at least 12: it has to come down to 2^18", n[30] >= 12, n[30])

# %%
S, losses = 2.0 ** np.array(EXPONENTS), [loss for _, loss, _ in runs.values()]
paths = {k: run.steps["scale"] for k, (run, _, _) in dynamic.items()}
blue, limit = look("fp16").hue, 2 ** edge[0]
with plt.rc_context(RC | {"lines.linewidth": 2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    top.axhline(fp32, color=BLACK, lw=1.2)
    top.plot(S, losses, "o-", color=blue)
    top.axvline(limit, color=GREY, ls="dashed")
    top.text(2**-9.2, 0.12, "gradients\nunderflow", ha="center")
    top.text(2**8, fp32 * 1.3, "fp16", color=blue, weight="bold")
    top.text(2**8, fp32 * 0.6, "fp32", weight="bold")
    top.text(limit * 0.7, 0.35, "65504 / max|g|\nof one step", ha="right")
    top.set(yscale="log", ylim=(1.5e-3, 6), xlabel="loss scale S", ylabel="loss at the end")
    top.set_title("The loss scale matters at its edges only")
    for k, line, x, y in ((30, "solid", 6, 28), (24, "dashed", 0, 13), (0, "dotted", 62, 0)):
        low.step(np.arange(STEPS), paths[k], where="post", color=blue, ls=line)
        bad = np.flatnonzero(dynamic[k][0].steps["skipped"])
        low.plot(bad, paths[k][bad], "x", color=VERMILLION, ms=6, mew=1.8)
        low.text(x, 2.0**y, f"from $2^{{{k}}}$", color=blue)
    low.axhline(limit, color=GREY, ls="dashed")
    low.text(STEPS, limit / 8, "edge of the first step", ha="right")
    low.text(50, 2**28, "x  skipped step", color=VERMILLION)
    low.set(xlabel="step", ylabel="loss scale S", title="A dynamic scale follows the right edge")
    top.set_xscale("log", base=2)
    low.set_yscale("log", base=2)
save(fig, "09_loss_scale_plateau", {"S": S, "loss": losses, "fp32": fp32, "dynamic": paths})

# %% [markdown]
# ## Exercise
# The largest gradient is 0.2831. How many steps in a row does a dynamic scale skip that starts at
# 2^start, for start from 0 to 60? The specification halves and counts; do it without a loop.


# %%
def by_halving(start):
    scales = 2.0 ** np.arange(start, -1, -1)
    return int(np.isinf(ps.quantize(scales * 0.2831, "fp16")).sum())


@exercise(spec=by_halving, strategy=lambda st: st.integers(0, 60))
def skips_before_the_first_step(start):
    raise NotImplementedError


# %% [markdown]
# **In practice.** PyTorch's GradScaler starts at 65536, doubles after 2000 clean steps, and halves on
# overflow. A few skipped steps at the start are normal. A scale that keeps falling is not: then the
# forward pass overflows, which no scale cures. bf16 has fp32's range and needs no loss scale. S must
# not be fp16 itself, which ends before 65536: autocast computes the loss in fp32. After `model.half()`
# the loss is fp16, and GradScaler refuses ("Attempting to unscale FP16 gradients").
#
# **On your own.** 1. Replace Adam by `optimizer="sgd", lr=0.03, momentum=0.9`. Adam divides by the
# size of the gradient, and so forgives one that is too small but not zero. What does SGD do?
# 2. Set `gradients=e5m2 weight_gradients=e5m2`. Which edge moves, and by how many powers of two?
# 3. Look at one step of yours with `precsim scan`.
#
# **Further reading.** Micikevicius et al. 2018, section 3.2 and figure 3: a detection network whose
# activation gradients need a scale of 8; section 5 names dynamic scaling as future work.
