# %% [markdown]
# # 12 - Eight bits without a master copy: frozen, or as good as fp32
#
# **One idea.** On a grid with even steps the question of lesson 10 has one answer for all weights:
# are updates larger than half a step? If not, nearest learns nothing at all; by chance it learns.
#
# *You will* train a model with weights in 8-bit fixed point, and vary the bits. *You learn* to tell
# in advance, from the learning rate alone, whether a run can learn.
#
# *Needs:* lesson 04 (fair coins), lesson 10 (lost updates).
# *Runtime:* about 35 s, one CPU core.
# *Paper:* Gupta et al. 2015, arXiv:1502.02551, sections 3 and 4; Kingma and Ba 2015, section 2.1.
# *Writes:* `figures/12_eight_bits_no_master.png` (To nearest there is an edge, by chance none.), `figures/12_one_step.png` (One step of weights that stand still: its gradients are in good health.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, GREY, PURPLE

# %% [markdown]
# ## The grid
# Gupta et al. write a fixed-point format <IL, FL>: IL bits before the point, sign included, FL
# behind it. Its numbers are multiples of 2^-FL; <2, 6>, here "q2.6", has 8 bits.

# %%
LR = 3e-3
grid = np.array(ps.format("q2.6").values())
check("its steps are all 2^-6", np.diff(grid) == 2.0**-6)
check("it ends at 127/64", grid.max() == 127 / 64)
check("0.5 plus an update of 0.003 is 0.5", ps.quantize(0.5 + LR, "q2.6") == 0.5)
chance = ps.prob_up(0.5 + LR, "q2.6")
check("by chance it goes up about one time in five", abs(chance - LR * 2**6) < 1e-12, chance)

# %% [markdown]
# ## How large can an update be?
# Adam's update is lr m' / sqrt(v'), with m' a mean of past gradients with weights p, and v' a mean
# of their squares with weights q. By Cauchy and Schwarz |m'| / sqrt(v') is at most sqrt(sum of p^2
# / q), whatever the gradients are. Usually it is below 1; Kingma and Ba (section 2.1) expect no
# more.

# %%
worst = 0.0
for t in range(1, 1000):
    p, q = 0.9 ** np.arange(t), 0.99 ** np.arange(t)  # newest first; beta1, beta2 as below
    worst = max(worst, np.sqrt(np.sum((p / p.sum()) ** 2 / (q / q.sum()))))
check("no update is above 2.35 lr = 0.0071", worst < 2.35, worst)
check("half a step of <2, 6>, 2^-7 = 0.0078, is more", 2.35 * LR < 2.0**-7)

# %% [markdown]
# **Predict.** Weights in <2, FL>, rounded to nearest. From which FL on does the model learn?

# %%
my_guess = None  # an integer

# %%
STEPS = 60 if quick() else 100
BASE = ps.TrainConfig(
    data="reverse", context=16, width=32, layers=1, heads=2, batch=32, steps=STEPS, lr=LR,
    warmup=1, schedule="constant", eval_every=STEPS, observe="off",
)  # fmt: skip


def train(policy, seed=0, **changes):
    return ps.train(BASE.change(policy=f"arithmetic=fast {policy}", seed=seed, **changes))


def fixed(fl, mode="nearest"):
    return f"weights=q2.{fl}" + (":stochastic" if mode == "chance" else "")


FEW = {"nearest": (6, 7, 8), "chance": (6,)}
MANY = {"nearest": (4, 6, 7, 8, 9, 10), "chance": (4, 6, 8, 10)}
runs, fp32 = {}, {}
for seed in seeds(3):
    sweep = FEW if seed or quick() else MANY
    fp32[seed] = train("weights=fp32", seed)
    runs[seed] = {(m, fl): train(fixed(fl, m), seed) for m, fls in sweep.items() for fl in fls}
learns = [fl for (m, fl), run in runs[0].items() if m == "nearest" and run.final_loss() < 2.3]
predict("the smallest FL that learns", my_guess, min(learns))
print(f"fp32               loss {fp32[0].final_loss():.4f}")
for (mode, fl), run in runs[0].items():
    print(f"<2, {fl:2}>  {mode:8}  loss {run.final_loss():.4f}")

# %% [markdown]
# ## What happened
# Half a step is 2^-(FL+1). Up to FL = 6 no weight *can* move, and at FL = 7, where half a step is
# still above lr, none learns: the loss stays above that of guessing, ln 11 = 2.4. At FL = 8 half a
# step is 0.00195, below lr, and the model learns. By chance 8 bits end where 32 do, and 6 bits come
# close.

# %%
for seed, run in runs.items():
    start = train(fixed(6), seed, steps=1, eval_every=1).model.parameters
    end = run["nearest", 6].model.parameters
    same = [np.array_equal(w.numpy(), end[name].numpy()) for name, w in start.items()]
    check(f"seed {seed}: at FL = 6 all weights end as they were after one step", same)
    for fl in (6, 7):
        now = run["nearest", fl].final_loss()
        check(f"seed {seed}: <2, {fl}> to nearest has learnt nothing", now > 2.4, now)
    check(f"seed {seed}: <2, 8> to nearest learns", run["nearest", 8].final_loss() < 2.0)
    eight = run["chance", 6].final_loss() / fp32[seed].final_loss()
    most = 1.5 if quick() else 1.2
    check(f"seed {seed}: 8 bits by chance: below {most} times fp32", eight < most, eight)
if not quick():
    six = runs[0]["chance", 4].final_loss() / fp32[0].final_loss()
    check("<2, 4> by chance, 6 bits: within twice fp32's", six < 2, six)

# %% [markdown]
# ## One step
# The next step of the frozen run. Its gradient is exact to fp32, and no op of the forward or
# backward pass is in trouble. And then an update in fp32's last step: how large is it?

# %%
frozen = runs[0]["nearest", 6]
step = show_step(moment_of(frozen), worst=2, figure="12_one_step")
check("the gradient is float64's to 0.001 %", step.drift.rho < 1e-5, step.drift.rho)
updates = []


def keep(event):
    if event.op == "apply_update" and event.step == STEPS - 1:
        updates.append(np.abs(np.array(event.inputs[1], float)).ravel())


ps.train(BASE.change(policy="arithmetic=fast"), observers=[keep])
sizes = np.concatenate(updates)
check("no update of fp32's last step is above lr", sizes.max() <= LR * 1.001, sizes.max())

# %% [markdown]
# ## It is the storage
# "int8 needs stochastic rounding" is said of all int8 training. Put the *operands of every product*
# in int8, one scale a tensor, to nearest, and keep the weights in fp32: nothing happens.

# %%
products = train("rule=op=matmul,inputs=int8").final_loss() / fp32[0].final_loss()
check("int8 operands end within 20 % of fp32", 0.8 < products < 1.2, products)

# %%
with plt.rc_context(RC | {"lines.linewidth": 2.2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    drawn = {}
    for mode, line in (("nearest", "o-"), ("chance", "o:")):
        drawn[mode] = {fl: r.final_loss() for (m, fl), r in runs[0].items() if m == mode}
        top.plot(list(drawn[mode]), list(drawn[mode].values()), line, color=PURPLE)
    top.axhline(fp32[0].final_loss(), color=BLACK, lw=1.2)
    top.axvline(-np.log2(LR) - 1, color=GREY, ls="dashed")
    top.text(-np.log2(LR) - 0.9, 1.2, "half a step\n= learning rate")
    top.text(4, 1.6, "nearest", color=PURPLE, weight="bold")
    top.text(4.7, fp32[0].final_loss() * 1.5, "by chance", color=PURPLE, weight="bold")
    top.text(5.1, fp32[0].final_loss() * 0.8, "fp32", va="top")
    top.set(yscale="log", ylim=(4e-3, 4), ylabel=f"loss after {STEPS} steps")
    top.set_xlabel("FL: weights are multiples of $2^{-FL}$")
    top.set_title("To nearest there is an edge; by chance there is none")
    bins = np.arange(-20, -7.75, 0.25)
    counts = np.histogram(np.log2(sizes[sizes > 0]), bins)[0] / sizes.size
    low.stairs(counts, bins, fill=True, color="#c9c9c9")
    for fl in (4, 6, 8, 10):
        low.axvline(-fl - 1, color=PURPLE, lw=1.4)
        low.text(-fl - 1, counts.max() * 1.06, f"FL = {fl}", color=PURPLE, ha="center")
    low.set_title("In the last step no update reaches half a step of FL = 6", pad=24)
    low.set_xticks(range(-20, -3, 2), [f"$2^{{{k}}}$" for k in range(-20, -3, 2)])
    low.set(yticks=[], xlabel="size of an update; lines: half a step", xlim=(-20, -4))
    low.spines["left"].set_visible(False)
save(fig, "12_eight_bits_no_master", {"loss": drawn, "log2_update": bins, "share": counts})

# %% [markdown]
# ## Exercise
# Given the size of an update, n * 2^-20, which is the smallest FL >= 1 at which rounding to nearest
# moves a weight of 0? The specification tries them one after the other.


# %%
def by_trying(n):
    fl = 1
    while ps.quantize(n * 2.0**-20, f"q2.{fl}") == 0:
        fl += 1
    return fl


@exercise(spec=by_trying, strategy=lambda st: st.integers(1, 2**20 - 1))
def smallest_fl(n):
    raise NotImplementedError


# %% [markdown]
# **In practice.** Most "int8 training" keeps fp32 or bf16 master weights and quantizes products
# only (SwitchBack); the int8 weights are a copy. Without a master copy one needs rounding by
# chance, which some hardware has (Graphcore's IPU, AWS Trainium). Real int8 weights have a scale,
# so the step is amax / 127, and one large weight makes it large for all (lesson 13).
#
# **On your own.** 1. `lr=0.006`: which FL is the edge now? 2. SGD has no bound on its updates: try
# `optimizer="sgd", lr=0.1` at <2, 6>. 3. Put gradients in int8, too: `gradients=int8`.
#
# **Further reading.** Gupta et al. 2015: 16-bit fixed point, rounded by chance, trains networks for
# MNIST and CIFAR-10 with "little to no degradation". Kingma and Ba 2015, section 2.1.
