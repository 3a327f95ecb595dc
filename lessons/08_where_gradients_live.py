# %% [markdown]
# # 08 - Where gradients live: a histogram that shows what the loss hides
#
# **One idea.** A model that learns makes its own gradients smaller. fp16 has no number between 0 and
# 2^-24, so the better the model, the more of its backward pass becomes zero.
#
# *You will* train a model in fp32, look at the exponents of its gradients as it learns, and count
# what fp16 would lose of them. *You learn* to read from one histogram which loss scale is needed.
#
# *Needs:* lesson 01 (the grid).
# *Runtime:* about 15 s, one CPU core.
# *Paper:* Micikevicius et al. 2018, arXiv:1710.03740, sections 3.1 and 3.2, figures 2 and 3.
# *Writes:* `figures/08_where_gradients_live.png` (Gradients of a model that learns move out of fp16.), `figures/08_one_step.png` (One step without a loss scale, op by op.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.observe.counters import LOWEST, total
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import look, share

# %% [markdown]
# ## Two bounds of fp16
# Below 2^-14 fp16 numbers are *subnormal*: they lose significand bits. The smallest is 2^-24, and
# what is at most half of it, 2^-25, rounds to zero.

# %%
WHO = "Micikevicius et al. 2018, section 3.2"
fp16 = ps.format("fp16")
check("the smallest normal fp16 number is 2^-14", fp16.smallest_normal == 2.0**-14)
check("the smallest of all is 2^-24", fp16.smallest_subnormal == 2.0**-24)
check("2^-25 becomes zero", ps.quantize(2.0**-25, "fp16") == 0)
check("a little more does not", ps.quantize(1.01 * 2.0**-25, "fp16") == 2.0**-24)

# %% [markdown]
# ## Train in fp32, and look
# All 301 steps run in fp32, so nothing is lost. An observer counts the exponents of every gradient
# of an *activation*, that is, of what flows back through the layers; the first number of the
# backward pass, which is 1, is left out. Half of the positions carry no loss, so many gradients there
# are exactly zero. These are not numbers that rounding could lose, and are not counted.

# %%
LOOK_AT = (0, 30, 100) if quick() else (0, 30, 100, 300)
LAST = LOOK_AT[-1]
EXPONENTS = np.arange(LOWEST, LOWEST + 301)  # of the bins of a histogram


def train(seed, batch=32, last=LAST):
    """Return the counts of all backward ops at the steps of `LOOK_AT`, and the run."""
    kept = {}

    def keep(record, rows):
        if record.step in LOOK_AT:
            backward = [row for row in rows if row.phase == "backward" and row.scope != "seed"]
            kept[record.step] = backward

    config = ps.TrainConfig(
        data="reverse", context=16, width=32, layers=1, heads=2, batch=batch, lr=3e-3, warmup=1,
        steps=last + 1, schedule="constant", eval_every=last + 1, observe="hist",
        policy="arithmetic=fast", seed=seed,
    )  # fmt: skip
    run = ps.train(config, on_step=keep)
    return kept, run


def lost(rows, scale=1, role="gradients"):
    """Return the share of nonzero gradients that are below 2^-25 once scaled."""
    counts = total(rows, role=role).histogram
    return counts[EXPONENTS + np.log2(scale) < -25].sum() / counts.sum()


# %% [markdown]
# **Predict.** The loss has come down to about 0.001 by step 300. What share of the activation
# gradients would fp16 turn into zero there?

# %%
my_guess = None  # a number between 0 and 1

# %%
runs, models = {}, {}
for seed in seeds(3):
    runs[seed], models[seed] = train(seed)
predict(f"share lost at step {LAST}, from 0 to 1", my_guess, lost(runs[0][LAST]), tol=0.1)
for step, rows in runs[0].items():
    print(f"step {step:3}: fp16 would lose {lost(rows):6.2%} of the activation gradients")
for seed, run in runs.items():
    shares, loss = [lost(run[step]) for step in LOOK_AT], models[seed].steps["loss"][-1]
    check(f"seed {seed}: the loss comes down", loss < (0.02 if quick() else 0.002), loss)
    check(f"seed {seed}: more is lost at every look", shares == sorted(shares), shares)
    check(f"seed {seed}: under 0.1 % at step 0", shares[0] < 0.001, shares[0])
    check(f"seed {seed}: 15 to 60 % at step {LAST}", 0.15 < shares[-1] < 0.6, shares[-1])

# %% [markdown]
# ## The upper half of fp16 stands empty
# fp16 reaches up to 65504, nearly 2^16, and at step 300 no activation gradient is above 2^-10: at
# least 26 powers of two are unused. Multiply the loss by S, and every gradient moves up by log2(S).
#
# **Predict.** At S = 8 a detection network trained as in fp32 (section 3.2). What is lost here?

# %%
my_guess = None  # a number between 0 and 1

# %%
predict("share lost at S = 8, from 0 to 1", my_guess, lost(runs[0][LAST], 8), tol=0.05)
for scale in (1, 8, 64, 1024, 8192):
    print(f"S = {scale:5}: {lost(runs[0][LAST], scale):6.2%} lost")
for seed, run in runs.items():
    top = total(run[LAST], role="gradients").amax
    one, eight, many = (lost(run[LAST], scale) for scale in (1, 8, 1024))
    check(f"seed {seed}: the largest is below 2^-10", top < 2.0**-10, np.log2(top))
    check(f"seed {seed}: S = 8 saves two fifths of it or more", eight < 0.6 * one, eight / one, WHO)
    check(f"seed {seed}: at S = 1024 less than 5 % is lost", many < 0.05, many)

# %% [markdown]
# ## Why the loss does not tell
# The gradients of *weights* are sums over all positions, and much larger. Of those fp16 would lose
# few, so a run in fp16 looks healthy while a good part of what flows back through it is zero.
#
# **The knob.** The loss is a mean over the batch, so a larger batch makes each gradient smaller.

# %%
for seed, run in runs.items():
    gone = lost(run[LAST], role="weight_gradients")
    check(f"seed {seed}: less than 3 % of the weight gradients are lost", gone < 0.03, gone)
if not quick():
    large, small = lost(train(0, batch=256, last=100)[0][100]), lost(runs[0][100])
    check("at step 100, 8 times the batch loses more than twice as much", large > 2 * small, large)

# %% [markdown]
# ## One step
# The next step, really in fp16 (but for the 1 it starts from), without a scale: which ops lose most?

# %%
FP16 = "activations=fp16 gradients=fp16 weight_gradients=fp16 rule=scope=seed,output=fp32"
step = show_step(moment_of(models[0], FP16), figure="08_one_step")
worst = step.worst(1)[0].counts.flushed_share
check("the worst op loses more than half of its results", worst > 0.5, worst)
check("and yet the gradient is right to a tenth", step.drift.rho < 0.1, step.drift.rho)

# %%
K = np.arange(-48, 18)
with plt.rc_context(RC):
    fig, panels = plt.subplots(
        len(LOOK_AT), 1, figsize=(WIDTH, 8.4), sharex=True, layout="constrained"
    )
    for axes, (step, rows) in zip(panels, runs[0].items(), strict=True):
        counts = total(rows, role="gradients").histogram[K - LOWEST]
        axes.axvspan(-48, -25, color="#f6d5cc", lw=0)
        axes.axvspan(-25, -14, color="#fbeecf", lw=0)
        axes.bar(K, counts / counts.sum(), width=1, align="edge", color=look("fp16").hue)
        axes.set(ylim=(0, 0.19), yticks=[], xlim=(-48, 18))
        axes.spines["left"].set_visible(False)
        axes.text(17, 0.1, f"step {step}: {share(lost(rows))} lost", ha="right")
    for x, name in ((-47.5, "zero in fp16"), (-24.6, "subnormal"), (-5, "normal")):
        panels[0].text(x, 0.15, name)
    panels[0].set_title("Gradients of a model that learns move out of fp16")
    panels[-1].stairs(counts / counts.sum(), np.append(K, 18) + 10, color="#222222", lw=1.8)
    panels[-1].text(17, 0.055, f"S = 1024: {share(lost(rows, 1024))} lost", ha="right")
    ticks = range(-48, 17, 8)
    panels[-1].set_xticks(ticks, [f"$2^{{{k}}}$" for k in ticks])
    panels[-1].set_xlabel("size of an activation gradient")
save(
    fig, "08_where_gradients_live",
    {"lowest": LOWEST} | {f"step {s}": total(r, role="gradients").histogram for s, r in runs[0].items()},
)  # fmt: skip

# %% [markdown]
# ## Exercise
# Given how many gradients have each exponent from -40 to -1, which is the smallest S = 2^k, k >= 0,
# at which at most 1 % of them is below 2^-25? The specification tries them all; do it in one pass.


# %%
def by_trying(counts):
    exponents, k = np.arange(-40, 0), 0
    while np.array(counts)[exponents + k < -25].sum() > 0.01 * sum(counts):
        k += 1
    return k


@exercise(
    spec=by_trying, strategy=lambda st: st.lists(st.integers(0, 500), min_size=40, max_size=40)
)
def smallest_scale(counts):
    raise NotImplementedError


# %% [markdown]
# **In practice.** Frameworks do not draw this histogram; they raise S until something overflows
# (lesson 09). bf16 has the exponents of fp32 and loses nothing here. What fp16 loses at S = 1 may
# not matter: this model trains as well without a scale (lesson 09). It is the margin that is gone.
#
# **On your own.** 1. Use `data="zen"`, a text whose loss stays higher: is as much lost?
# 2. Count against e5m2, whose smallest number is 2^-16. 3. Stop at step 1000.
#
# **Further reading.** Micikevicius et al. 2018, figure 3: of the activation gradients of a detection
# network 67 % are zero; those from 2^-27 to 2^-24 matter to training, and those below do not.
