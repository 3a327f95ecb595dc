# %% [markdown]
# # 00 - A tour: a run that learns nothing, and how to find out why
#
# **One idea.** Low precision seldom fails with an error message. The loss stays where it is, and the
# reason is inside a single training step, where it can be found op by op.
#
# *You will* train a small transformer in fp32 and in fp16, see fp16 learn nothing, take one of its
# steps apart, and put it right with one number. *You learn* the five questions of this course: what
# happened, where did it begin, which op is to blame, what is the least that helps, what is the remedy.
#
# *Needs:* Python; nothing about floating point.
# *Runtime:* about 20 s, one CPU core.
# *Paper:* Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.
# *Writes:* `figures/00_tour.png` (A loss that stays high, and the op where its gradient is lost.), `figures/00_one_step.png` (The step that is lost, op by op.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.analyse.blame import blame
from precsim.analyse.diff import diff
from precsim.analyse.search import search
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, GREY, look

# %% [markdown]
# ## Two runs
# The model reads eight digits and writes them backwards. A recipe says which tensor is kept in which
# number format: under `fp32` all have 32 bits, under `fp16` weights, activations and gradients have
# 16. All else is equal. `micro_batches` divides the loss, as when that many batches share one update;
# with 2^16 of them an update is for 34 million tokens, and each token's gradient is small.

# %%
STEPS = 60 if quick() else 100
BASE = ps.TrainConfig(
    data="reverse", context=16, width=32, layers=1, heads=2, batch=32, steps=STEPS, lr=3e-3,
    warmup=1, schedule="constant", eval_every=STEPS, micro_batches=2**16, observe="off",
)  # fmt: skip


def train(recipe, seed, **changes):
    return ps.train(BASE.change(seed=seed, **ps.recipe(recipe).settings() | changes))


# %% [markdown]
# **Predict.** There are eleven characters: who knows nothing, and says so, has a loss of ln 11 = 2.4.
# fp32 comes down to less than 0.02. Where does fp16 end?

# %%
my_guess = None  # a number

# %%
fp32 = {seed: train("fp32", seed) for seed in seeds(3)}
fp16 = {seed: train("fp16", seed) for seed in seeds(3)}
predict("the loss at which fp16 ends", my_guess, fp16[0].final_loss(), tol=0.3)
for seed in seeds(3):
    good, bad = fp32[seed].final_loss(), fp16[seed].final_loss()
    check(f"seed {seed}: fp32 learns the task", good < (0.2 if quick() else 0.02), good)
    check(f"seed {seed}: fp16 ends above ln 11", bad > np.log(11), bad)
    check(f"seed {seed}: and yet its loss stays finite", np.isfinite(fp16[seed].steps["loss"]))

# %% [markdown]
# No error, no warning. The loss says that something is wrong, and nothing else.
#
# ## What happened to each op?
# An *op* is one operation of a step: a matrix product, a softmax, the gradient of a layer norm.
# precsim computes each of them wide and rounds the result once. So it can count how many results
# rounding made zero (*flushed*), how many are so small that they lost digits (*subnormal*), and how
# many were too large (*overflow*). Here is the step after the last, the worst ops first.

# %%
moment = moment_of(fp16[0])
step = show_step(moment, figure="00_one_step")
error, angle = step.drift.rho, np.degrees(step.drift.angle)
check("the error of fp16's gradient is larger than the gradient", error > 1, error)
check("it is at right angles to float64's, within 10 degrees", abs(angle - 90) < 10, angle)

# %% [markdown]
# `gradients/lnf/layer_norm_grad` is the gradient of an activation, in the last layer norm. The ops in
# trouble are close to the loss. Those further back have nothing to lose: they are given zeros.
#
# ## Where did it begin?
# The same step in float64, op beside op. A result may be off because what came in was. So look for
# the first op whose own rounding does more than the 11 significant bits of fp16 explain.

# %%
first = {seed: diff(moment_of(fp16[seed])).first_abnormal() for seed in seeds(3)}
for seed, op in first.items():
    check(f"seed {seed}: it begins at the gradient of the loss", "cross_entropy" in op.path)
    check(f"seed {seed}: where 10 of 11 become zero", abs(op.flushed - 10 / 11) < 0.01, op.flushed)

# %% [markdown]
# It is p - 1 for the right character and p for each of the ten others, where p is what the model gives
# that character, divided by the number of tokens to predict: 2^8 in a batch, and 2^16 batches. fp16's
# smallest number is 2^-24, and what is less than half of it becomes zero. Now 1 - p is more than a
# half, and every p less; so the gradient says "more of the right one", always by the same 2^-24, and
# nothing of the others.
#
# ## Which op is to blame?
# Keep one op in float64, all others in fp16: how much of the error is gone?

# %%
worst = blame(moment).worst(3)
for one in worst:
    print(f"{one.site.name:40} removes {one.removes:6.1%} of the error")
check("the op to blame is the one where it began", worst[0].site.name == first[0].path)
check("in float64 it removes over half the error", worst[0].removes > 0.5, worst[0].removes)
check("any other op removes less than 1 %", worst[1].removes < 0.01, worst[1].removes)

# %% [markdown]
# What is left is still large: the next op gets the small numbers, and drops them itself.
#
# ## What is the least that helps?
# A minimal set of ops to keep in float64, so that the gradient is right to 5 %: leave out any one of
# them, and it is not. There are 2^50 sets to choose from; the search tries some 200.
#
# **Predict.** How many of the 50 ops does it keep?

# %%
my_guess = None  # an integer

# %%
ops, kept = moment.sites(), search(moment, 0.05).keep
predict(f"ops to keep in float64, of {len(ops)}", my_guess, len(kept), tol=2)
check("about a third of 50 ops must be kept", len(ops) == 50 and 14 <= len(kept) <= 20, len(kept))
check("all of these are in the backward pass", all(site.phase == "backward" for site in kept))

# %% [markdown]
# So it is the whole way back from the loss to the embedding; and nothing there needs more *digits*.
#
# ## The remedy
# The numbers are too small, all of them. So multiply the loss by S, the *loss scale*; by the chain rule
# every gradient is S times as large. Divide those of the weights by S at the end, in fp32. We take
# 2^15, the largest power of two that fp16 has; multiplying by a power of two costs no digits.

# %%
S, who = 2**15, "Micikevicius et al. 2018, section 3.2"
scaled = {seed: train("fp16", seed, loss_scale=f"static:{S}") for seed in seeds(3)}
for seed in seeds(3):
    ratio = scaled[seed].final_loss() / fp32[seed].final_loss()
    check(f"seed {seed}: with S, fp16 ends within 10 % of fp32", abs(ratio - 1) < 0.1, ratio, who)
rows = {s: diff(moment.at(scale=s)).rows for s in (1, S)}
error = {s: np.array([row.total * row.u or np.nan for row in found]) for s, found in rows.items()}
check("no op of the step that failed is off by 1 % now", np.nanmax(error[S]) < 0.01)
hue, x = look("fp16").hue, np.arange(len(rows[1]))
back = [row.path for row in rows[1]].index(first[0].path)
with plt.rc_context(RC | {"lines.linewidth": 2.2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    top.axhline(np.log(11), color=GREY, lw=1)
    top.text(STEPS, 2.36, "ln 11", color=GREY, ha="right", va="top")
    for run, line, color in ((fp16, "-", hue), (fp32, "-", BLACK), (scaled, ":", hue)):
        top.plot(run[0].steps["loss"], ls=line, color=color)
    top.text(STEPS, 2.7, "fp16", color=hue, ha="right", weight="bold")
    top.text(STEPS * 0.33, 0.75, "fp32, and fp16 with a loss scale (dots)")
    top.set(xlabel="step", ylabel="loss", ylim=(0, 3))
    top.set_title("The same model in fp16 learns nothing")
    low.axvspan(back - 0.5, x[-1] + 0.5, color="#f3f3f3", lw=0)
    low.semilogy(x, error[1], "o-", color=hue, base=2)
    low.plot(x[back:], error[S][back:], "o:", color=hue, mfc="white")
    low.set(xlim=(-0.5, x[-1] + 0.5), ylim=(2**-16, 2**4), yticks=2.0 ** np.arange(-16, 5, 4))
    low.set(xlabel="the ops of one step, in their order", xticks=[], ylabel="error beside float64")
    low.text(back - 1, 0.4, "gradient of the loss", color=hue, ha="right", va="center")
    low.text(x[-1], 2**-7.6, "with a loss scale", color=hue, ha="right")
    low.text(0, 2**-15.5, "forward pass")
    low.text(back, 2**-15.5, "backward pass")
    low.set_title("One step: where it goes wrong")
losses = [runs[0].steps["loss"] for runs in (fp32, fp16, scaled)]
save(fig, "00_tour", {"loss of fp32, fp16, fp16 with S": losses, "error": error})

# %% [markdown]
# ## Exercise
# A gradient is 2^-n. Which is the smallest S = 2^k, with k from 0 up, that keeps it from becoming zero
# in fp16? Give k. (What lies in the middle between two numbers goes to the one with an even code.)


# %%
def by_trying(n):
    k = 0
    while ps.quantize(2.0**-n * 2.0**k, "fp16") == 0:
        k += 1
    return k


@exercise(spec=by_trying, strategy=lambda st: st.integers(0, 100))
def least_loss_scale(n):
    raise NotImplementedError


# %% [markdown]
# **In practice.** PyTorch, Keras and Apex find S themselves (lesson 09), and keep a copy of the
# weights in fp32 (lesson 10). DeepSeek-V3 has 63 million tokens in an update; but many devices share
# them, and each divides by its own part only, so less is lost for this reason than here.
#
# **On your own.** 1. Halve `micro_batches` until fp16 learns without S. 2. Try the recipe `"bf16"`.
# 3. `precsim train` records a run with `-o DIR`; `precsim show`, `diff`, `blame`, `search` read it.
#
# **Further reading.** Micikevicius et al. 2018, section 3.2. DeepSeek-AI 2024, arXiv:2412.19437,
# section 4.2. Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input".
