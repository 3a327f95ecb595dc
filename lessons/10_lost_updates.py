# %% [markdown]
# # 10 - Lost updates: the step that is too small to be taken
#
# **One idea.** Rounded to nearest, a weight moves only if its update is at least half the gap to
# the next number. In bf16 most of Adam's updates are smaller, and every one of those is dropped.
#
# *You will* train one model five times: weights in fp32, in bf16 rounded to nearest, in bf16 rounded
# by chance, in bf16 with Kahan's correction, in bf16 with a master copy in fp32. *You learn* why a
# run whose loss goes down may still throw away most of its updates.
#
# *Needs:* lesson 04 (rounding by chance).
# *Runtime:* about 30 s, one CPU core.
# *Paper:* Zamirai et al. 2020, arXiv:2010.06192; Micikevicius et al. 2018, arXiv:1710.03740, s.
# 3.1.
# *Writes:* `figures/10_lost_updates.png` (Most updates are below half the gap of their weight.), `figures/10_one_step.png` (One step with bf16 weights: its gradients are in good health.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, look, share

# %% [markdown]
# ## The gap
# bf16 has 8 significand bits. From 1/8 to 1/4 its numbers are 2^-10 apart, so a weight of 0.2 moves
# if the update is more than 2^-11 = 0.00049. Adam divides by the size of the gradient: whatever
# that is, its updates are about as large as the learning rate, here 0.001, or smaller.

# %%
LR = 1e-3
weight = ps.quantize(0.2, "bf16")
check("an update of 0.001 moves a bf16 weight of 0.2", ps.quantize(weight - LR, "bf16") < weight)
check("one of 0.0004 does not", ps.quantize(weight - 4e-4, "bf16") == weight)
weight = ps.quantize(0.6, "bf16")
check(
    "an update of 0.001 does not move a weight of 0.6", ps.quantize(weight - LR, "bf16") == weight
)

# %% [markdown]
# **Predict.** 300 steps, weights in bf16, rounded to nearest. What share of the last updates leaves
# its weight exactly where it was?

# %%
my_guess = None  # a number between 0 and 1

# %%
STEPS = 90 if quick() else 300
WAYS = {  # name -> weights, and how the update is written into them; all else is fp32
    "fp32": ("weights=fp32", "plain"),
    "nearest": ("weights=bf16", "plain"),
    "by chance": ("weights=bf16:stochastic", "plain"),
    "Kahan": ("weights=bf16", "kahan"),
    "master": ("weights=bf16 master_weights=fp32", "plain"),
}
BASE = ps.TrainConfig(
    data="reverse", context=16, width=32, layers=1, heads=2, batch=32, steps=STEPS, lr=LR,
    warmup=1, schedule="constant", eval_every=STEPS, observe="counts",
)  # fmt: skip


last_step = {}  # name of a weight -> its values and its updates, in the last step of "nearest"


def keep(event):
    if event.op == "apply_update" and event.step == STEPS - 1:
        last_step[event.scope] = [np.array(x, float).ravel() for x in event.inputs]


def train(way, seed):
    weights, update = WAYS[way]
    config = BASE.change(policy=f"{weights} arithmetic=fast", weights_update=update, seed=seed)
    return ps.train(config, observers=[keep] if (way, seed) == ("nearest", 0) else [])


runs = {seed: {way: train(way, seed) for way in WAYS} for seed in seeds(3)}
lost = {way: run.steps["lost_updates"] for way, run in runs[0].items()}
predict("share of the last updates lost, from 0 to 1", my_guess, lost["nearest"][-1], 0.05)
for way, run in runs[0].items():
    print(f"{way:10} loss {run.final_loss():.4f}, {lost[way][-1]:6.1%} of the last updates lost")

# %% [markdown]
# ## What happened
# The loss of "nearest" falls all the way, and ends four times as high as fp32's. Nothing in its
# curve says that most of the training is thrown away. The other three end where fp32 does.
#
# "By chance" leaves most weights in place, too. The share of lost updates is not the harm by
# itself: an update of a tenth of the gap is dropped every time by nearest; by chance it becomes a
# whole gap one time in ten, and so is right on average (lesson 04).

# %%
for seed, run in runs.items():
    end = {way: run[way].final_loss() / run["fp32"].final_loss() for way in WAYS}
    stay = {way: run[way].steps["lost_updates"][-1] for way in WAYS}
    least = 1.2 if quick() else 2.5  # a short run has lost less
    check(f"seed {seed}: nearest ends far above fp32", end["nearest"] > least, end["nearest"])
    check(f"seed {seed}: by chance within 25 %", 0.75 < end["by chance"] < 1.25, end["by chance"])
    for way in ("Kahan", "master"):
        check(f"seed {seed}: {way} within 5 %", 0.95 < end[way] < 1.05, end[way])
    check(f"seed {seed}: nearest loses most updates", stay["nearest"] > 0.5, stay["nearest"])
    check(f"seed {seed}: so does chance", stay["by chance"] > 0.5, stay["by chance"])

# %% [markdown]
# ## One step
# Nothing is wrong with the gradient of the next step of "nearest": no op is in trouble, and no loss
# scale (lesson 09) would help. What goes wrong is the very last op, weight + update.

# %%
step = show_step(moment_of(runs[0]["nearest"]), worst=3, figure="10_one_step")
check("the gradient is float64's to 0.001 %", step.drift.rho < 1e-5, step.drift.rho)

# %% [markdown]
# So look at the last update of each weight: how large is it beside half the gap of its weight?
# Below 1 it is lost, and at 1, a tie, every other time; ties are rare, and counted as lost here.
# (The gap is the one above the weight.)


# %%
def halves(weight, update):
    """Return the sizes of the updates in half gaps of their weights, where neither is zero."""
    moved = (weight != 0) & (update != 0)
    exponent = np.floor(np.log2(np.abs(weight[moved])))
    return np.abs(update[moved]) / 2 ** (exponent - 8)


sizes = {name: halves(*pair) for name, pair in last_step.items()}
every = np.concatenate(list(sizes.values()))
gone = {name: np.mean(size <= 1) for name, size in sizes.items()}
for name, size in sorted(sizes.items(), key=lambda item: gone[item[0]]):
    print(f"{name:25} {gone[name]:6.1%} lost, median update {np.median(size):.3f} half gaps")
gains = [name for name in sizes if name.startswith("blocks.0.ln") and name.endswith("weight")]
check(
    "half gaps count the lost updates right", abs(np.mean(every <= 1) - lost["nearest"][-1]) < 0.01
)
check("gains of the norms are near 1, and none moves", min(gone[name] for name in gains) == 1)

# %%
K, hue = np.arange(-12, 5), look("bf16").hue
smooth = {w: np.convolve(r.steps["loss"], np.ones(10) / 10, "valid") for w, r in runs[0].items()}
counts = np.histogram(np.log2(every), np.append(K, 5))[0] / every.size
with plt.rc_context(RC | {"lines.linewidth": 2.2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    for way, line in (("fp32", "-"), ("nearest", "-"), ("by chance", ":")):
        top.plot(smooth[way], color=BLACK if way == "fp32" else hue, ls=line)
    top.set(yscale="log", xlabel="step", ylabel="loss, mean of 10 steps")
    top.set_title("A loss that falls, too slowly")
    end = len(smooth["nearest"])
    top.text(end, 0.03, "bf16 to nearest", color=hue, ha="right", weight="bold")
    top.text(end * 0.73, 0.0055, "fp32, and bf16 by chance (dots)", ha="right")
    low.bar(K, counts, width=1, align="edge", color=np.where(K < 0, hue, "#c9c9c9"))
    low.set_title("Most updates are below half the gap of their weight")
    low.set_xticks(K[::2], [f"$2^{{{k}}}$" for k in K[::2]])
    low.set(xlabel="update, in half gaps of its weight (last step of bf16 to nearest)", yticks=[])
    low.spines["left"].set_visible(False)
    low.text(-4.6, 0.15, f"{share(np.mean(every <= 1))} lost", color=hue, ha="right", weight="bold")
    low.text(1.3, 0.06, "taken")
save(fig, "10_lost_updates", {"loss": smooth, "exponents": K, "share": counts})

# %% [markdown]
# ## Exercise
# Kahan's correction keeps what rounding left over, in bf16 as well, and adds it to the next update.
# The weight is 1, and every update is 2^-k. After how many of them does the weight move? Give 0 if
# it never does. The specification tries 300.


# %%
def by_waiting(k):
    weight, left_over = 1.0, 0.0
    for count in range(1, 301):
        total = float(ps.quantize(left_over + 2.0**-k, "bf16"))
        new = float(ps.quantize(weight + total, "bf16"))
        if new != weight:
            return count
        left_over = total  # less what the weight took: nothing
    return 0


@exercise(spec=by_waiting, strategy=lambda st: st.integers(1, 40))
def updates_until_it_moves(k):
    raise NotImplementedError


# %% [markdown]
# **In practice.** Mixed precision keeps master weights in fp32: 4 more bytes a weight. Stochastic
# rounding needs none, Kahan's correction 2. PyTorch's autocast leaves the weights in fp32; after
# `model.bfloat16()` an ordinary `AdamW` rounds to nearest, like the run that fell behind here.
# fp16 has 3 more significand bits than bf16, so its gaps are 8 times smaller; fewer are lost.
#
# **On your own.** 1. `weights=fp16`: how far behind does it end? 2. Add `schedule="cosine"`: what
# do small learning rates at the end of a run do to "nearest"? 3. `optimizer="sgd", lr=0.03`.
#
# **Further reading.** Zamirai et al. 2020: "nearest rounding for model weight updates often cancels
# small updates"; stochastic rounding and Kahan's correction on seven applications. Micikevicius et
# al. 2018, section 3.1: an fp16 update can be lost from a weight 2048 times as large on.
