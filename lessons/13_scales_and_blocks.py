# %% [markdown]
# # 13 - Scales and blocks: where eight bits end, and four begin
#
# **One idea.** A narrow format has no room for both the largest and the smallest value of a tensor.
# A scale moves all values together; one for each small block keeps an outlier from ruining others.
#
# *You will* train with the operands of all products in 8 and in 4 bits, with no scale, one for each
# tensor, and one for each block. *You learn* what a scale does for a float, and for an integer.
#
# *Needs:* lesson 08 (where gradients live), lesson 04 (fair coins).
# *Runtime:* about 40 s, one CPU core.
# *Paper:* Micikevicius et al. 2022, arXiv:2209.05433; OCP Microscaling Formats 1.0.
# *Writes:* `figures/13_scales_and_blocks.png` (One outlier, and what is left of the other values.), `figures/13_one_step.png` (One step in e4m3 without a scale, op by op.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.lesson.step import take
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import GREEN, GREY, OCHRE, PURPLE

# %% [markdown]
# ## One outlier
# 256 x 256 normal numbers, of which one column is multiplied by 100. How well does a format keep
# *the other* columns? We measure signal over noise in decibels; 6 dB are one bit.
#
# **Predict.** int8 with one scale for the tensor keeps normal numbers with about 40 dB. How many dB
# are left of the other columns, once there is the outlier?

# %%
my_guess = None  # decibels

# %%
FORMATS = {  # name -> format
    "int8, tensor": "int8:tensor", "int8, block of 32": "mxint8", "e4m3, tensor": "e4m3:tensor",
    "e2m1, tensor": "e2m1:tensor", "e2m1, block of 32": "mxfp4", "e2m1, block of 16": "nvfp4",
}  # fmt: skip
OUTLIERS = 2.0 ** np.arange(13)


def sqnr(fmt, outlier, seed):
    x = np.random.default_rng(seed).standard_normal((256, 256))
    x[:, 7] *= outlier
    kept, got = (np.delete(values, 7, axis=1) for values in (x, ps.quantize(x, fmt)))
    return 10 * np.log10(np.sum(kept**2) / np.sum((got - kept) ** 2))


left = {(s, n): [sqnr(f, x, s) for x in (1, 100)] for s in seeds(3) for n, f in FORMATS.items()}
predict("left in int8", my_guess, left[0, "int8, tensor"][1], tol=3, unit="dB")
for name in FORMATS:
    print(f"{name:18} {left[0, name][0]:5.1f} dB, with the outlier {left[0, name][1]:5.1f} dB")
for seed in seeds(3):
    (int_8, worse), (e4m3, as_good) = left[seed, "int8, tensor"], left[seed, "e4m3, tensor"]
    (_, blocks), (_, four) = left[seed, "int8, block of 32"], left[seed, "e2m1, tensor"]
    check(f"seed {seed}: int8, one scale: over 30 dB lost", int_8 - worse > 30, worse)
    check(f"seed {seed}: int8, blocks: 10 dB more left", blocks - worse > 10, blocks)
    check(f"seed {seed}: e4m3, one scale: under 1 dB lost", e4m3 - as_good < 1, as_good)
    check(f"seed {seed}: e2m1, one scale: nothing left", four < 0.1, four)

# %% [markdown]
# An integer spends its bits evenly: the step is amax / 127, for all. A float's step follows the
# size of each value, so e4m3 does not care where amax is, as long as most values are in its 15
# binades of normal numbers. e2m1 has three of them, and needs blocks as much as an integer does.
# With blocks the outlier ruins its own block only, and in a smaller block fewer values.
#
# ## Train with it
# The two operands of each product, forward and backward, go through the format; all else is fp32.
# Unscaled, e4m3 ends at 2^-9, e5m2 at 2^-16.
#
# **Predict.** A model that knows nothing of the text's 45 letters has a loss of ln 45 = 3.8. Which
# of the ways below end above 3.5?

# %%
my_guess = None  # a list of names

# %%
WAYS = {  # name -> policy; all that is not an operand of a product is fp32
    "fp32": "fp32",
    "e4m3, no scale": "rule=op=matmul,inputs=e4m3",
    "e4m3 and e5m2, no scale": "rule=op=matmul,inputs=e4m3,gradient_inputs=e5m2",
    "e4m3 and e5m2, tensor": "rule=op=matmul,inputs=e4m3:tensor,gradient_inputs=e5m2:tensor",
    "MXFP8": "rule=op=matmul,inputs=mxfp8_e4m3",
    "e2m1, tensor": "rule=op=matmul,inputs=e2m1:tensor",
    "e2m1, tensor, chance": "rule=op=matmul,inputs=e2m1:tensor,gradient_inputs=e2m1:tensor:stochastic",
    "MXFP4": "rule=op=matmul,inputs=mxfp4",
    "NVFP4": "rule=op=matmul,inputs=nvfp4",
    "NVFP4, chance": "rule=op=matmul,inputs=nvfp4,gradient_inputs=nvfp4:stochastic",
}
if quick():
    WAYS = {name: WAYS[name] for name in [*list(WAYS)[:3], "e2m1, tensor", "NVFP4"]}
STEPS = 60 if quick() else 150
BASE = ps.TrainConfig(
    data="zen", context=32, width=32, layers=1, heads=2, batch=16, steps=STEPS, lr=3e-3,
    warmup=1, schedule="constant", eval_every=STEPS, observe="off",
)  # fmt: skip
runs = {
    seed: {way: ps.train(BASE.change(policy=policy, seed=seed)) for way, policy in WAYS.items()}
    for seed in seeds(3)
}
loss = {seed: {w: run.final_loss() for w, run in ways.items()} for seed, ways in runs.items()}
nothing = [way for way, value in loss[0].items() if value > 3.5]
predict("what ends above 3.5", my_guess, nothing)
for way, value in loss[0].items():
    print(f"{way:25} {value:.3f}")

# %% [markdown]
# ## What happened
# e4m3 alone has no room for gradients. With e5m2 for gradients, or with scales, 8 bits end within a
# few percent of fp32, and at this size it does not matter which scales: e5m2 needs none at all.
#
# In 4 bits it matters much. With one scale per tensor the loss is far above, and rounding gradients
# by chance wins back part of it. Blocks win back more; then chance makes no difference we could
# see.

# %%
for seed, end in loss.items():
    above = {way: value / end["fp32"] - 1 for way, value in end.items()}
    one, blocks = above["e2m1, tensor"], above["NVFP4"]
    check(f"seed {seed}: e4m3 without a scale ends above 3.5", end["e4m3, no scale"] > 3.5)
    eight = max(above[way] for way in WAYS if "e5m2" in way or way == "MXFP8")
    check(f"seed {seed}: other 8-bit ways end within 10 % of fp32", eight < 0.1, eight)
    check(f"seed {seed}: e2m1, one scale, ends over 15 % above", one > 0.15, one)
    check(f"seed {seed}: NVFP4 is above fp32 by less than half of that", blocks < one / 2, blocks)
    if not quick():
        chance, same = above["e2m1, tensor, chance"], above["NVFP4, chance"] - blocks
        check(f"seed {seed}: chance wins back a quarter of it", chance < 0.75 * one, chance)
        check(f"seed {seed}: NVFP4: chance changes less than 10 %", abs(same) < 0.1, same)

# %% [markdown]
# ## One step
# The next step of the fp32 run, taken in each way: what became zero, and how far is its gradient
# from float64's? In 4 bits it is as far off by chance as to nearest: what chance buys shows over
# many steps.

# %%
moments = {way: moment_of(runs[0]["fp32"], policy) for way, policy in WAYS.items()}
step = show_step(moments["e4m3, no scale"], worst=4, figure="13_one_step")
check("the worst op loses over 90 % of its values", step.worst(1)[0].counts.flushed_share > 0.9)
error = {way: take(moment).drift.rho for way, moment in moments.items()}
for way, value in error.items():
    print(f"{way:25} {value:6.1%} from float64's gradient")
if not quick():
    same = error["e2m1, tensor, chance"] / error["e2m1, tensor"]
    check("by chance as far off as to nearest, within 20 %", 0.8 < same < 1.2, same)

# %%
curves = {name: [sqnr(fmt, outlier, 0) for outlier in OUTLIERS] for name, fmt in FORMATS.items()}
NAMES = (
    (31, "e4m3, one scale", GREEN), (14.5, "e2m1, blocks of 16", OCHRE),
    (0, "int8, e2m1, one scale", GREY), (10.5, "int8, blocks of 32", PURPLE), (6.5, "e2m1, blocks of 32", OCHRE),
)  # fmt: skip
with plt.rc_context(RC | {"lines.linewidth": 2.2}):
    fig, (top, low) = plt.subplots(2, figsize=(WIDTH, 8.2), layout="constrained")
    for name, curve in curves.items():
        hue = PURPLE if "int8" in name else GREEN if "e4m3" in name else OCHRE
        top.semilogx(OUTLIERS, curve, base=2, color=hue, ls="-" if "tensor" in name else ":")
    for y, name, hue in NAMES:
        top.text(2**12.3, y, name, color=hue, va="center")
    top.set(xlim=(0.8, 2**19.5), xlabel="factor of the outlier", ylabel="dB left of the others")
    top.set_xticks(2.0 ** np.arange(0, 13, 2))
    top.set_title("One outlier, and what it leaves of the others")
    for place, (way, value) in enumerate(loss[0].items()):
        hue = OCHRE if way.startswith(("e2m1", "MXFP4", "NV")) else GREEN
        low.barh(place, value, height=0.7, color=hue if place else GREY)
        low.text(value + 0.04, place, f"{value:.2f}", va="center")
    low.set_yticks(range(len(WAYS)), WAYS)
    low.set(ylim=(len(WAYS) - 0.5, -0.5), title="8 bits need range, 4 bits need blocks")
    low.set_xlabel(f"loss after {STEPS} steps")
save(fig, "13_scales_and_blocks", {"outlier": OUTLIERS, "dB": curves, "loss": loss[0]})

# %% [markdown]
# ## Exercise
# How many bits does an element take, its share of the scale included? The specification counts the
# bits of a thousand blocks.


# %%
def by_counting(element, scale, block):
    return sum(block * element + scale for _ in range(1000)) / (1000 * block)


@exercise(spec=by_counting, strategy=lambda st: st.tuples(*[st.integers(1, 64)] * 3))
def bits_per_element(element, scale, block):
    raise NotImplementedError


# %% [markdown]
# **In practice.** NVIDIA's Blackwell multiplies MXFP8, MXFP4 and NVFP4. Hopper has e4m3 and e5m2
# with one scale per tensor; Transformer Engine takes it from the amax of earlier steps (delayed
# scaling), and clips when a tensor jumps. NVFP4 recipes round gradients by chance and keep some
# layers wide: they are made for models far larger than this one.
#
# **On your own.** 1. `inputs=mxfp4:ceil` never clips: does it help? 2. int4 in blocks: `int4:1x32`.
# 3. Keep the last layer wide: `rule=scope=head,output=fp32` before the other rule.
#
# **Further reading.** Micikevicius et al. 2022, table 1 and section 3; OCP Microscaling Formats
# 1.0; Rouhani et al. 2023, arXiv:2310.10537; NVIDIA 2025, arXiv:2509.25149 (NVFP4 pretraining).
