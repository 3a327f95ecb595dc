# %% [markdown]
# # 11 - Adam in 16 bits: it squares the gradient, and divides by the root
#
# **One idea.** Adam keeps a mean of g^2. Squaring doubles every exponent, so half of fp16's range
# is gone at once; where the mean is rounded to zero, the update is divided by eps, or by nothing.
#
# *You will* train with Adam's two states in fp16 and in bf16, and vary eps. *You learn* why 16-bit
# Adam fails in the first steps or not at all, and why the format with fewer digits is better.
#
# *Needs:* lesson 08 (where gradients live).
# *Runtime:* about 30 s, one CPU core.
# *Paper:* Kingma and Ba 2015, arXiv:1412.6980; DeepSeek-V3, arXiv:2412.19437, s. 3.3.3.
# *Writes:* `figures/11_adam_in_16_bits.png` (A squared gradient falls out of fp16.), `figures/11_one_step.png` (One step after the update that broke the model, op by op.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.observe.counters import count, total
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, look, share

# %% [markdown]
# ## The rule
#     m = b1 m + (1 - b1) g            v = b2 v + (1 - b2) g^2
#     w = w - lr * m' / (sqrt(v') + eps)      with m' = m / (1 - b1^t), v' = v / (1 - b2^t)
#
# With b2 = 0.999 the first v is 0.001 g^2. In fp16 it is zero if that is at most 2^-25.
#
# **Predict.** Up to which |g| does fp16 lose 0.001 g^2?

# %%
my_guess = None  # a number

# %%
bound = np.sqrt(2.0**-25 / 0.001)
predict("the largest |g| whose v is 0 in fp16", my_guess, bound)
check("2^-25 = 0.001 g^2 at g = 0.0055", abs(bound - 0.0055) < 5e-5, bound)
lost = [g for g in (0.0054, 0.0056) if ps.quantize(0.001 * g * g, "fp16") == 0]
check("0.0054 is lost, 0.0056 is not", lost == [0.0054])
check("so is the usual eps of 1e-8", ps.quantize(1e-8, "fp16") == 0)
check("the b2 of 0.999 would be 1 in bf16", ps.quantize(0.999, "bf16") == 1)
check("bf16 holds 1e-8, and its square", ps.quantize(0.001 * 1e-8**2, "bf16") > 0)

# %% [markdown]
# ## Three ways to keep m and v
# The model, its gradients and its weights are fp32; only Adam differs. "fp16" has m, v and every
# line of the rule in fp16. "states" has m and v in fp16, and computes in fp32. "bf16" is bf16
# throughout.
#
# **Predict.** 120 steps with eps = 1e-8. What does each end with: "as fp32", "far above", or "NaN"?

# %%
my_guess = None  # three words, in a list

# %%
STEPS = 60 if quick() else 120
BASE = ps.TrainConfig(
    data="reverse", context=16, width=32, layers=1, heads=2, batch=32, steps=STEPS, lr=3e-3,
    beta2=0.999, warmup=1, schedule="constant", eval_every=STEPS, observe="off",
)  # fmt: skip
WAYS = {
    "fp32": "arithmetic=fast optimizer_state=fp32",
    "fp16": "arithmetic=fast optimizer_state=fp16 update=fp16",
    "states": "arithmetic=fast optimizer_state=fp16",
    "bf16": "arithmetic=fast optimizer_state=bf16 update=bf16",
}


def train(way, eps, seed):
    return ps.train(BASE.change(policy=WAYS[way], eps=eps, seed=seed))


final = {}  # seed -> (way, eps) -> loss
for seed in seeds(3):
    every = (1e-8, 1e-4) if seed or quick() else (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
    final[seed] = {("fp16", eps): train("fp16", eps, seed).final_loss() for eps in every}
    for way in ("fp32", "states", "bf16"):
        final[seed][way, 1e-8] = train(way, 1e-8, seed).final_loss()
ratio = [final[0][way, 1e-8] / final[0]["fp32", 1e-8] for way in ("fp16", "states", "bf16")]
words = ["as fp32" if r < 1.5 else "far above" if r > 1.5 else "NaN" for r in ratio]
predict("how fp16, states and bf16 end", my_guess, words)
for (way, eps), loss in final[0].items():
    print(f"{way:8} eps = {eps:.0e}   loss {loss:.4g}")

# %% [markdown]
# ## What happened
# In fp16 with eps = 1e-8 the first update divides by zero, and the run is over. A larger eps is
# what a lost root leaves to divide by: in the first step m' = g, so an update gets as large as
# 0.0055 lr / eps. With eps = 1e-6 that is 16, and the model ends worse than one that knows nothing,
# whose loss is ln 11 = 2.4. Computing in fp32 does not help: v was lost when it was stored. With
# eps = 1e-4 it is 55 lr, and the run gets over it. bf16 has 3 bits of precision less, and the
# exponents of fp32: nothing goes wrong.

# %%
for seed, loss in final.items():
    fp32, worst = loss["fp32", 1e-8], loss["states", 1e-8]
    check(f"seed {seed}: fp16, eps = 1e-8: NaN", np.isnan(loss["fp16", 1e-8]))
    check(f"seed {seed}: states, eps = 1e-8: above 1000, or NaN", not worst < 1000, worst)
    best = loss["fp16", 1e-4] / fp32
    check(f"seed {seed}: fp16, eps = 1e-4: a third above fp32 at most", best < 4 / 3, best)
    bf16 = loss["bf16", 1e-8] / fp32
    check(f"seed {seed}: bf16: within 15 % of fp32's", 0.85 < bf16 < 1.15, bf16)
if not quick():
    check("fp16, eps = 1e-6: worse than knowing nothing", final[0]["fp16", 1e-6] > np.log(11))

# %% [markdown]
# ## One step
# The first update in fp16, line by line: which of its results become zero? (With eps = 1e-7, so
# that there is something to divide by: in fp16 that is 2^-23, and 0.0055 lr / eps is 137.)

# %%
rows, exact_v = [], []


def watch(event):
    if event.role == "optimizer_state" and event.call == 1:  # call 0 is m
        exact_v.append(np.array(event.exact, float).ravel())
    if event.phase == "update":
        rows.append(count(event))


one = BASE.change(steps=1, eval_every=1, eps=1e-7)
ps.train(one.change(policy=WAYS["fp32"]), observers=[watch])
rows.clear()
broken = ps.train(one.change(policy=WAYS["fp16"]), observers=[watch])
v = np.concatenate(exact_v[: len(exact_v) // 2])  # those of fp32
lost = np.mean((v := v[v > 0]) <= 2.0**-25)
for op in ("mul", "square", "add", "sqrt", "div"):
    row = total(rows, op=op)
    print(f"{op:7} {row.flushed_share:6.1%} became zero, the largest result is {row.amax:.3g}")
check("no op overflows", not any(row.overflowed for row in rows))
check("a quarter of v or more becomes zero", lost > 0.25, lost)
check("1e-7 is 2^-23 in fp16", ps.quantize(1e-7, "fp16") == 2.0**-23)
move = total(rows, op="apply_update").amax
check("a weight is moved to 137, and lr is 0.003", abs(move - 137) < 2, move)

# %% [markdown]
# No op overflowed. And the gradient of the next step is right, for weights that are not.

# %%
step = show_step(moment_of(broken), worst=2, figure="11_one_step")
check("the gradient is float64's to 0.1 %", step.drift.rho < 1e-3, step.drift.rho)

# %%
K, blue, red = np.arange(-50, 5), look("fp16").hue, look("bf16").hue
hist = [np.histogram(np.log2(x), K)[0] / v.size for x in (np.sqrt(v * 1000), v)]
shown = {eps: loss for (way, eps), loss in final[0].items() if way == "fp16" and loss > 0}
with plt.rc_context(RC | {"lines.linewidth": 2.2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    top.axvspan(K[0], -25, color="#f6d5cc", lw=0)
    top.axvspan(-25, -14, color="#fbeecf", lw=0)
    top.stairs(hist[0], K, color=BLACK)
    top.stairs(hist[1], K, color=blue, fill=True)
    for x, words in ((-49.5, "zero in fp16"), (-24.6, "subnormal")):
        top.text(x, 0.235, words)
    top.text(-4, 0.2, "|g|", weight="bold")
    top.text(-37, 0.09, f"0.001 g²:\n{share(lost)} lost", color=blue, weight="bold")
    top.set(xlim=(K[0], 4), ylim=(0, 0.26), yticks=[], xlabel="size, in the first step")
    top.set_xticks(range(-48, 1, 8), [f"$2^{{{k}}}$" for k in range(-48, 1, 8)])
    top.set_title("A squared gradient falls out of fp16")
    top.spines["left"].set_visible(False)
    low.plot(list(shown), list(shown.values()), "o-", color=blue)
    low.axhline(final[0]["bf16", 1e-8], color=red)
    low.plot(1e-8, 1e5, "x", color=blue, ms=11, mew=3)
    low.text(1.3e-8, 6e4, "NaN in fp16", color=blue, weight="bold")
    low.text(1e-8, 0.009, "bf16 and fp32, with eps = 1e-8", color=red, weight="bold")
    low.set(xscale="log", yscale="log", xlabel="eps", ylabel=f"loss after {STEPS} steps")
    low.set_title("fp16 needs a large eps; bf16 needs nothing")
save(fig, "11_adam_in_16_bits", {"exponents": K, "g": hist[0], "v": hist[1], "fp16": shown})

# %% [markdown]
# ## Exercise
# Let b2 = 1 - 2^-k. Which is the largest fp16 number g for which 2^-k g^2, rounded to fp16 once, is
# zero? The specification tries every fp16 number; k is from 0 to 24.


# %%
def by_trying(k):
    g = ps.decode(np.arange(0x7C00), "fp16")
    return float(g[ps.quantize(2.0**-k * g**2, "fp16") == 0].max())


@exercise(spec=by_trying, strategy=lambda st: st.integers(0, 24))
def largest_lost(k):
    raise NotImplementedError


# %% [markdown]
# **In practice.** PyTorch's AMP keeps Adam in fp32. After `model.half()` its states are fp16, with
# the eps of 1e-8, and fail as here. DeepSeek-V3 keeps m and v in bf16 and sees no harm. What must
# not be rounded is b2: in bf16 0.999 is 1, 1 - b2 is 0, and v stays zero; keep it a Python number.
#
# **On your own.** 1. Multiply the loss by 1024, as lesson 09 does, but do not divide by it again:
# what does Adam do with it? 2. `optimizer_state=e5m2`. 3. `beta2=0.95`: is less lost?
#
# **Further reading.** DeepSeek-V3, section 3.3.3: bf16 moments, fp32 master weights and gradients.
# Dettmers et al. 2022, arXiv:2110.02861, section 2: 8-bit optimizers by blocks.
