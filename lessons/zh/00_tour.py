# %% [markdown]
# # 00 - 导览：一次什么也没学到的训练，以及怎样查出原因
#
# **只讲一件事。** 低精度出问题时，很少会报错。损失只是停在原处，而原因就藏在某一个训练步里，
# 逐个算子地看，就能找到它。
#
# *你将要* 分别用 fp32 和 fp16 训练一个小型 transformer，看到 fp16 什么也学不到，再拆开其中一步，
# 用一个数把它救回来。*你会学到* 本课程反复要问的五个问题：发生了什么？从哪里开始？该怪哪个算子？
# 最少要改什么？怎样补救？
#
# *前置：* 会 Python 即可，不需要懂浮点数。
# *用时：* 单核约 20 秒。
# *论文：* Micikevicius 等 2018，arXiv:1710.03740，第 3.2 节。
# *产出：* `figures/00_tour.png`（停在高处的损失，以及梯度在哪个算子里丢失），`figures/00_one_step.png`（丢失的那一步，逐个算子看）。

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
# ## 两次训练
# 模型读入八个数字，再倒着写出来。配方（recipe）规定哪个张量用哪种数值格式保存：在 `fp32` 下全部是 32 位，
# 在 `fp16` 下权重、激活和梯度是 16 位。其余一切相同。`micro_batches` 用来除损失，就像有这么多个批次共用
# 一次更新；取 2^16 个时，一次更新对应 3400 万个词元，每个词元的梯度都很小。

# %%
STEPS = 60 if quick() else 100
BASE = ps.TrainConfig(
    data="reverse", context=16, width=32, layers=1, heads=2, batch=32, steps=STEPS, lr=3e-3,
    warmup=1, schedule="constant", eval_every=STEPS, micro_batches=2**16, observe="off",
)  # fmt: skip


def train(recipe, seed, **changes):
    return ps.train(BASE.change(seed=seed, **ps.recipe(recipe).settings() | changes))


# %% [markdown]
# **预测。** 一共有十一种字符：什么都不知道、也老实承认的人，损失是 ln 11 = 2.4。fp32 能降到 0.02 以下。
# fp16 会停在哪里？

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
# 没有报错，也没有警告。损失只告诉我们出了问题，别的什么也没说。
#
# ## 每个算子发生了什么？
# *算子*是一步中的一次运算：一次矩阵乘法、一次 softmax、层归一化的梯度，等等。precsim 先用宽格式算出每个
# 算子的结果，再一次性舍入。于是它可以数出来：有多少结果被舍入成了零（*flushed*），有多少因为太小而丢了
# 位数（*subnormal*，次正规数），有多少太大（*overflow*）。下面是训练结束后的下一步，情况最糟的算子排在前面。

# %%
moment = moment_of(fp16[0])
step = show_step(moment, figure="00_one_step")
error, angle = step.drift.rho, np.degrees(step.drift.angle)
check("the error of fp16's gradient is larger than the gradient", error > 1, error)
check("it is at right angles to float64's, within 10 degrees", abs(angle - 90) < 10, angle)

# %% [markdown]
# `gradients/lnf/layer_norm_grad` 是最后一个层归一化里激活的梯度。出问题的算子都靠近损失。
# 更靠后的那些已经没有什么可丢的了：交到它们手里的全是零。
#
# ## 从哪里开始？
# 同一步再用 float64 算一遍，逐个算子对照。一个结果有偏差，可能只是因为输入就有偏差。所以要找的是第一个
# 这样的算子：它自己的舍入误差，超出了 fp16 的 11 位有效数字所能解释的程度。

# %%
first = {seed: diff(moment_of(fp16[seed])).first_abnormal() for seed in seeds(3)}
for seed, op in first.items():
    check(f"seed {seed}: it begins at the gradient of the loss", "cross_entropy" in op.path)
    check(f"seed {seed}: where 10 of 11 become zero", abs(op.flushed - 10 / 11) < 0.01, op.flushed)

# %% [markdown]
# 这个梯度，对正确的字符是 p - 1，对其余十个字符各是 p，这里 p 是模型给那个字符的概率；还要除以待预测的词元
# 数：一个批次 2^8 个，共 2^16 个批次。fp16 最小的数是 2^-24，比它的一半还小的就变成零。而这里 1 - p 大于
# 二分之一，其余每个 p 都小于二分之一；于是梯度只会说“正确的再多一点”，而且总是同样的 2^-24，
# 对其余字符一言不发。
#
# ## 该怪哪个算子？
# 只让一个算子用 float64，其余都用 fp16：误差会消失多少？

# %%
worst = blame(moment).worst(3)
for one in worst:
    print(f"{one.site.name:40} removes {one.removes:6.1%} of the error")
check("the op to blame is the one where it began", worst[0].site.name == first[0].path)
check("in float64 it removes over half the error", worst[0].removes > 0.5, worst[0].removes)
check("any other op removes less than 1 %", worst[1].removes < 0.01, worst[1].removes)

# %% [markdown]
# 剩下的误差仍然很大：下一个算子拿到这些小数，又自己把它们丢掉了。
#
# ## 最少要改什么？
# 要让梯度的误差不超过 5 %，最少得让哪些算子留在 float64？（“最少”的意思是：从中去掉任何一个，就做不到了。）
# 可选的集合有 2^50 个；搜索大约试 200 个。
#
# **预测。** 50 个算子里，要保留多少个？

# %%
my_guess = None  # an integer

# %%
ops, kept = moment.sites(), search(moment, 0.05).keep
predict(f"ops to keep in float64, of {len(ops)}", my_guess, len(kept), tol=2)
check("about a third of 50 ops must be kept", len(ops) == 50 and 14 <= len(kept) <= 20, len(kept))
check("all of these are in the backward pass", all(site.phase == "backward" for site in kept))

# %% [markdown]
# 可见，从损失一路回到嵌入层，整条路都得保留；而这条路上没有哪一处需要更多的*位数*。
#
# ## 补救
# 这些数全都太小。那就把损失乘以 S，即*损失缩放*；由链式法则，每个梯度都变成原来的 S 倍。最后再用 fp32 把
# 权重的梯度除以 S。这里取 2^15，它是 fp16 里最大的 2 的幂；乘以 2 的幂不会损失任何位数。

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
# ## 练习
# 某个梯度等于 2^-n。要使它在 fp16 里不变成零，最小的 S = 2^k 是多少（k 从 0 起）？请给出 k。
# （恰在两个数正中间的值，舍入到编码为偶数的那一个。）


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
# **实际情况。** PyTorch、Keras 和 Apex 会自己寻找 S（第 09 课），还会保留一份 fp32 的权重（第 10 课）。
# DeepSeek-V3 一次更新有 6300 万个词元；但它们分摊在许多设备上，每台设备只除以自己的那一份，
# 所以因此丢掉的比这里少。
#
# **自己动手。** 1. 把 `micro_batches` 一次次减半，直到 fp16 不用 S 也能学会。2. 换成配方 `"bf16"`。
# 3. `precsim train` 加上 `-o DIR` 就会记录训练；`precsim show`、`diff`、`blame`、`search` 都能读它。
#
# **延伸阅读。** Micikevicius 等 2018，第 3.2 节。DeepSeek-AI 2024，arXiv:2412.19437，第 4.2 节。
# Zeller 和 Hildebrandt 2002，“Simplifying and isolating failure-inducing input”。
