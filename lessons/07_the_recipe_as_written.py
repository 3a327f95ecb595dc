# %% [markdown]
# # 07 - The recipe as written: half the weights, half the backward pass, no loss scale
#
# **One idea.** That a recipe trained once says little. What fp16 takes away depends on how small the
# gradients are, and how small the updates are beside the weights; the loss shows neither.
#
# *You will* run a recipe from an introduction to low-precision training, to the letter, beside those
# of PyTorch, Apex and Keras. *You learn* which of its sentences hold, which do not, what to watch.
#
# *Needs:* lesson 01 (the grid).
# *Runtime:* about 40 s, one CPU core.
# *Paper:* Micikevicius et al. 2018, arXiv:1710.03740, section 3: the three techniques.
# *Writes:* `figures/07_the_recipe_as_written.png` (What a missing loss scale costs, and what the loss does not tell.), `figures/07_one_step.png` (One step of the recipe as written, op by op.)

# %%
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.analyse.moment import relative_error
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.nn import scaling
from precsim.recipes import snippet
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, BLUE, GREY, look

# %% [markdown]
# ## The text
# 1. Take a trained model. 2. Put its weights into half precision. 3. Compute the forward pass in
# single and the backward pass in half precision. 4. Check the metrics from time to time, and adjust
# the precision. A master copy of the weights, a scaled loss, ops that stay in fp32: not a word of
# these. We call the recipe `seed_mixed`, and the text's other one, all in half, `seed_low`.

# %%
for line in ps.recipe("seed_mixed").banner():
    print(fill(line, 80, subsequent_indent="     "))

# %% [markdown]
# ## The code
# The text comes with code: two linear layers, `model.half()`, SGD with lr = 0.01, ten epochs over 100
# random inputs with random labels. PyTorch refuses it, since the inputs are fp32 ("mat1 and mat2 must
# have the same dtype, but got Float and Half"). With half inputs it runs, and then the *forward* pass
# is fp16, too. For "forward in single, backward in half" PyTorch has no switch. Here we run both.
#
# **Predict.** Ten steps with fp16 weights. What share of the weight updates changes nothing?

# %%
my_guess = None  # a number between 0 and 1

# %%
WHO = "Micikevicius et al. 2018, section 3"
LITERAL = "weights=fp16 gradients=fp16 weight_gradients=fp16"  # activations, so forward: fp32
MASTER = f"{LITERAL} activations=fp16 master_weights=fp32"
WAYS = {"fp32": "fp32", "half": "fp16", "literal": LITERAL, "bf16": "bf16", "master": MASTER}
code = {way: [snippet.run(policy, seed=s) for s in range(3)] for way, policy in WAYS.items()}
predict("share of updates lost in ten steps", my_guess, code["half"][0].lost, tol=0.1)
loss = np.array([[run.final_loss for run in runs] for runs in code.values()])
lost = {way: [run.lost for run in runs] for way, runs in code.items()}
flushed = max(run.flushed for runs in code.values() for run in runs)
spread, apart = np.ptp(loss[0]), abs(loss - loss[0]).max()
check("another seed changes the loss by more than 0.1", spread > 0.1, spread)
check("another precision by less than 0.005", apart < 0.005, apart)
check("less than 0.1 % of the gradients underflow", flushed < 1e-3, flushed)
check("the recipe loses over 20 % of updates", min(lost["literal"]) > 0.2, min(lost["literal"]))
check("bf16 weights over 60 %", min(lost["bf16"]) > 0.6, min(lost["bf16"]))
check("with an fp32 master copy, under 0.1 %", max(lost["master"]) < 1e-3, max(lost["master"]))

# %% [markdown]
# Ten small steps towards labels that cannot be learnt: this loss cannot tell one precision from
# another. Updates are lost, and the missing loss scale does no harm, since the gradients are large.
#
# ## One step, under five recipes
# So let us make them small. The loss is a mean: over 2^k times as many tokens, each token's gradient
# is 2^k times smaller. We take a model that has learnt a short text in fp32, multiply its loss by
# 2^-k, compute one step, divide its gradient by 2^-k again, and compare with float64's. A recipe that
# scales the loss does so with the scale that it starts from.
#
# **Predict.** From which k on is the literal recipe off by more than a tenth?

# %%
my_guess = None  # an integer
BASE = ps.TrainConfig(
    context=32, width=32, layers=1, heads=2, batch=16, steps=30 if quick() else 100, warmup=1,
    eval_every=100, lr=3e-3, schedule="constant", policy="arithmetic=fast",
)  # fmt: skip
RECIPES = ("seed_mixed", "half", "torch_amp_fp16", "apex_O2", "keras_mixed_float16")
K = np.arange(0, 17, 8 if quick() else 2)
error, trained = {}, {}
for seed in seeds(3):
    run = trained[seed] = ps.train(BASE.change(data="zen", seed=seed, observe="off"))
    error[seed], truth = {}, moment_of(run).reference()
    for recipe in map(ps.recipe, RECIPES):
        step = moment_of(run, recipe.policy, scaling.parse(recipe.loss_scale).scale)
        found = [relative_error(step.at(weight=2.0**-k).gradients(), truth) for k in K]
        error[seed][recipe.name] = np.array(found)
least = int(K[np.argmax(error[0]["seed_mixed"] > 0.1)])
predict("the least k at which a tenth is wrong", my_guess, least, tol=1)
for name, row in ({"k": K} | error[0]).items():
    print(f"{name:20}", *(f"{e:8.2g}" for e in row))
for seed, found in error.items():
    ours, half, amp, *others = found.values()
    good = np.max([amp, *others])
    check(f"seed {seed}: at k = 0 it errs as AMP does", ours[0] < 1.5 * amp[0], ours[0] / amp[0])
    check(f"seed {seed}: at k = 16 more than half is wrong", ours[-1] > 0.5, ours[-1])
    check(f"seed {seed}: `half` is as far off, from k = 8 on", abs(half / ours - 1)[K >= 8] < 0.1)
    check(f"seed {seed}: the three with a loss scale stay below 1 %", good < 0.01, good, WHO)
written = moment_of(trained[0], ps.recipe("seed_mixed").policy).at(weight=2.0**-12)
step = show_step(written, figure="07_one_step")

# %% [markdown]
# It is the loss scale that counts. Whether the forward pass is fp16 hardly matters: `half`, which is
# fp16 throughout, is as far off as `seed_mixed`. The table shows the latter, at k = 12, op by op.
#
# ## "Check the metrics, and adjust the precision"
# Many steps, with Adam, on the task of lesson 08. *By loss*: go to fp32 once the loss has fallen by
# less than 5 % since the last look, 30 steps ago. *By signal*: where more than half of the updates
# change nothing, keep a master copy in fp32. Which of the two will ever do anything?

# %%
STEPS = 120 if quick() else 300


def train(fmt, rule="none", seed=0):
    config = BASE.change(data="reverse", context=16, batch=32, lr=1e-3, steps=STEPS, eval_every=30)
    policy = f"arithmetic=fast {LITERAL.replace('fp16', fmt)}"
    return ps.train(config.change(policy=policy, precision_schedule=rule, seed=seed))


LOW = {"bf16": 1.5} if quick() else {"fp16": 1.1, "bf16": 2.5}  # and how far above fp32 it ends
BY = ("loss", "signal")
runs = {seed: {(f, by): train(f, by, seed) for f in LOW for by in BY} for seed in seeds(3)}
for seed, run in runs.items():
    fp32 = train("fp32", seed=seed).final_loss()
    for fmt, least in LOW.items():
        lost = run[fmt, "loss"].steps["lost_updates"][-1]
        loss, signal = (run[fmt, by].final_loss() / fp32 for by in BY)
        check(f"seed {seed}: {fmt}, by loss: nothing happens", not run[fmt, "loss"].changes)
        check(f"seed {seed}: {fmt}: over 60 % of its last updates are lost", lost > 0.6, lost)
        check(f"seed {seed}: {fmt}: it ends {least} times as high as fp32", loss > least, loss)
        check(f"seed {seed}: {fmt}, by signal: it ends lower", signal < loss - 0.1, signal)

# %% [markdown]
# ## What holds, and what does not
# *Holds.* A small model trains in half precision; its loss is hard to tell from fp32's; weights take
# half the memory. *Does not.* Half-precision weights without a master copy: in the end most updates
# are lost. fp16 gradients without a loss scale: fine, until they are small. `half()` as "mixed". Only
# the backward pass in half: activations stay as large, and the smaller numbers get the narrower
# format. The loss as what to watch: one that falls too slowly still falls.

# %%
with plt.rc_context(RC | {"lines.linewidth": 2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    hues = (BLACK, GREY, BLUE, BLUE, BLUE)
    for hue, line, row in zip(hues, ("-", "--", "-", "--", ":"), error[0].values(), strict=True):
        top.semilogx(2.0**K, row, base=2, color=hue, ls=line)
    top.set(yscale="log", xlabel="tokens that the loss is a mean of, times this model's 512")
    top.set(ylabel="error of the gradient", title="One step: what a missing loss scale costs")
    top.text(150, 0.12, "as written, and all in fp16:\nno loss scale", ha="right")
    top.text(2**16, 0.0023, "PyTorch AMP, Apex O2, Keras: loss scaled", color=BLUE, ha="right")
    lost = {" by ".join(name): run.steps["lost_updates"] for name, run in runs[0].items()}
    for name, row in lost.items():
        hue = look(name.split()[0]).hue
        low.plot(row, color=hue, ls=":" if "signal" in name else "-")
        if "loss" in name:
            low.text(STEPS, row[-1] + 0.03, name, ha="right", color=hue)
    low.text(STEPS, 0.03, "by signal: a master copy", ha="right")
    low.set(xlabel="step", ylabel="weight updates lost", ylim=(0, 1))
    low.set_title("Many steps: what the loss does not tell")
    low.yaxis.set_major_formatter("{x:.0%}")
save(fig, "07_the_recipe_as_written", {"tokens": 2.0**K, "error": error[0], "lost": lost})

# %% [markdown]
# ## Exercise
# An fp16 weight has one of the codes 0x0400 to 0x7bff (positive and normal). What is the largest
# power of two that, added to it and rounded to nearest, leaves it where it is?


# %%
def by_trying(code):
    w, k = float(ps.decode(code, "fp16")), 15
    while ps.quantize(w + 2.0**k, "fp16") != w:
        k -= 1
    return 2.0**k


@exercise(spec=by_trying, strategy=lambda st: st.integers(0x0400, 0x7BFF))
def largest_lost_update(code):
    raise NotImplementedError


# %% [markdown]
# **In practice.** Under `torch.autocast` the forward pass decides; do not call `half()` beside it.
# Apex O2 has fp32 master weights, Keras fp32 variables. All three adapt a loss scale, not the formats.
#
# **On your own.** 1. `precsim recipes diff seed_mixed torch_amp_fp16`. 2. `snippet.run("bf16",
# data=snippet.teacher_data(), batch=64, steps=3000, lr=0.001)`: how far does it get, and "fp32"?
#
# **Further reading.** Micikevicius et al. 2018, sections 3.1 (master copy) and 3.2 (loss scaling).
