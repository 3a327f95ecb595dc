# %% [markdown]
# # 09 - 损失缩放的平台：为什么一个数适用于这么多模型
#
# **只讲一件事。** 损失缩放有两个边缘。太小，梯度下溢；太大，梯度上溢。两个边缘之间，大小完全无所谓，
# 而且两个边缘相距很远。
#
# *你将要* 用 fp16 训练一个小模型，缩放值从 2^-20 取到 2^20，然后让缩放值自己去找位置。
# *你会学到* 每个边缘是怎么来的，以及怎样只凭一步就预测右边缘。
#
# *前置：* 第 08 课（梯度在哪里）。
# *用时：* 单核约 30 秒。
# *论文：* Micikevicius 等 2018，arXiv:1710.03740，第 3.2 节。
# *产出：* `figures/09_loss_scale_plateau.png`（损失缩放只在边缘处才要紧），`figures/09_one_step.png`（一步训练，以及梯度上方的余量）。

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.analyse.scan import scan_scales
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import BLACK, GREY, VERMILLION, look

# %% [markdown]
# ## 实验台
# 模型读入八个数字，再倒着写出来。这一步算出的一切都是 fp16，只有混合精度留在 fp32 的那些除外：主权重、优化器、
# 损失，以及 S 本身，它就是缩放后的损失对损失的梯度。梯度里出现无穷大或 NaN 的步会被跳过。`backoff=1` 使 S
# 在跳过之后保持不变。

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
# ## 只凭一步，预测右边缘
# 最大的有限 fp16 数是 65504。如果某一步最大的梯度是 g，那么只要 S 不超过 65504 / g，S 乘以 g 就放得下。
# 用 fp32 走一步就知道 g。（反向传播从 1 出发；这个 1 不是模型的梯度。）

# %%
edge = {}
for seed in seeds(3):
    rows = []
    first = base.change(policy=FP32, steps=1, eval_every=1, observe="counts", seed=seed)
    ps.train(first, on_step=lambda record, counts, rows=rows: rows.extend(counts))
    backward = [row for row in rows if row.phase == "backward" and row.scope != "seed"]
    edge[seed] = np.log2(65504 / max(row.amax for row in backward))

# %% [markdown]
# **预测。** S 是 2 的幂，2^k。一步也不跳过的最大的 k 是多少？

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
# ## 发生了什么
# 从 2^0 到 2^17，损失与 fp32 的相差不到 1 %。往左，损失逐渐变坏，最后模型什么也没有学到；往右，
# 就在单独一步所预测的边缘处，像悬崖一样落下去。在 2^18，一部分批溢出了（种子 0 时是多数），模型只能从剩下的批学习。
#
# 左边的坡从 S = 1 以下才开始：**在这样的规模上，fp16 不做损失缩放也能训练。** 2^-12 的缩放代替的是更大的模型：
# 损失是平均值，一批里的词元多 4096 倍，每个词元的梯度就小 4096 倍。损失下降，梯度也跟着变小；所以这次训练起初学得到东西，
# 到损失约 0.02 时停了下来，在那里 fp16 再也没有数可用了。

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
# ## 看一步
# fp32 训练的下一步，从同样的权重、同一批数据出发，用 fp16 在每一种缩放下各算一次：反向传播的结果中有多少变成了零，
# 它的梯度与 float64 的相差多远？它的平台更靠右，因为训练后期的梯度已经变小。表格是 S = 1 时的各个算子。

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
# ## 让缩放值自己找位置
# 动态缩放不需要猜。溢出时，它把 S 减半并跳过这一步；连续若干步没有溢出，就把 S 加倍。这里是 20 步，
# PyTorch 是 2000 步。
#
# **预测。** 它从 2^30 开始。150 步中会跳过多少步？

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
# ## 练习
# 最大的梯度是 0.2831。动态缩放从 2^start 开始（start 从 0 到 60），会连续跳过多少步？给出的规范一边减半一边数；
# 请不用循环算出来。


# %%
def by_halving(start):
    scales = 2.0 ** np.arange(start, -1, -1)
    return int(np.isinf(ps.quantize(scales * 0.2831, "fp16")).sum())


@exercise(spec=by_halving, strategy=lambda st: st.integers(0, 60))
def skips_before_the_first_step(start):
    raise NotImplementedError


# %% [markdown]
# **实际情况。** PyTorch 的 GradScaler 从 65536 开始，连续 2000 步没有溢出就加倍，溢出就减半。开头跳过几步是正常的。
# 缩放值一直往下掉就不正常了：那是前向传播在溢出，什么缩放也救不了。bf16 的范围与 fp32 相同，不需要损失缩放。S 本身
# 不能是 fp16，因为 fp16 到不了 65536：autocast 用 fp32 计算损失。`model.half()` 之后损失就是 fp16，GradScaler 会拒绝
# （"Attempting to unscale FP16 gradients"）。
#
# **自己动手。** 1. 把 Adam 换成 `optimizer="sgd", lr=0.03, momentum=0.9`。Adam 会除以梯度的大小，所以梯度太小但不为零
# 时，它不在乎。SGD 呢？2. 设 `gradients=e5m2 weight_gradients=e5m2`。哪个边缘移动了，移动了几个二进制数量级？
# 3. 用 `precsim scan` 看看你自己的某一步。
#
# **延伸阅读。** Micikevicius 等 2018，第 3.2 节和图 3：一个检测网络，它的激活梯度需要 8 倍的缩放；第 5 节把动态缩放
# 列为今后的工作。
