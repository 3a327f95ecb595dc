# %% [markdown]
# # 08 - 梯度在哪里：一张直方图，显示损失曲线看不出的东西
#
# **只讲一件事。** 模型学得越好，自己的梯度就越小。fp16 在 0 和 2^-24 之间没有数，所以模型越好，
# 反向传播里变成零的部分就越多。
#
# *你将要* 用 fp32 训练一个模型，边训练边看它的梯度的指数，数一数 fp16 会丢掉其中多少。
# *你会学到* 怎样从一张直方图读出需要多大的损失缩放。
#
# *前置：* 第 01 课（格点）。
# *用时：* 单核约 15 秒。
# *论文：* Micikevicius 等 2018，arXiv:1710.03740，第 3.1、3.2 节，图 2、图 3。
# *产出：* `figures/08_where_gradients_live.png`（模型越学越好，梯度就移出了 fp16），`figures/08_one_step.png`（没有损失缩放的一步，逐个算子看）。

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, moment_of, predict, quick, save, seeds, show_step
from precsim.observe.counters import LOWEST, total
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import look, share

# %% [markdown]
# ## fp16 的两道界线
# 2^-14 以下的 fp16 数是*次正规数*，有效位会越来越少。最小的是 2^-24；不超过它的一半，即 2^-25 的数，
# 舍入后变成零。

# %%
WHO = "Micikevicius et al. 2018, section 3.2"
fp16 = ps.format("fp16")
check("the smallest normal fp16 number is 2^-14", fp16.smallest_normal == 2.0**-14)
check("the smallest of all is 2^-24", fp16.smallest_subnormal == 2.0**-24)
check("2^-25 becomes zero", ps.quantize(2.0**-25, "fp16") == 0)
check("a little more does not", ps.quantize(1.01 * 2.0**-25, "fp16") == 2.0**-24)

# %% [markdown]
# ## 用 fp32 训练，同时观察
# 全部 301 步都用 fp32，所以什么也不会丢。观测器记下每个*激活*的梯度的指数，也就是沿着各层传回来的那些数；
# 反向传播起点的那个 1 不算在内。一半的位置不计损失，所以那里有许多梯度恰好是零：这些不是会被舍入弄丢的数，不计入。

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
# **预测。** 到第 300 步，损失已经降到 0.001 左右。这时 fp16 会把激活梯度中的多大一部分变成零？

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
# ## fp16 的上半部分空着
# fp16 的上限是 65504，将近 2^16；而在第 300 步，没有一个激活梯度超过 2^-10，至少有 26 个二进制数量级没有用上。
# 把损失乘以 S，每个梯度就上移 log2(S)。
#
# **预测。** 有一个目标检测网络，S = 8 时训练效果就与 fp32 一样（第 3.2 节）。在这里，S = 8 时还会丢掉多少？

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
# ## 为什么损失看不出来
# *权重*的梯度是对所有位置求和，要大得多，fp16 只会丢掉其中很少一点。所以 fp16 的训练看上去很健康，
# 尽管沿网络传回来的数有相当一部分已经是零。
#
# **旋钮。** 损失是对整批数据取平均，所以批越大，每个梯度就越小。

# %%
for seed, run in runs.items():
    gone = lost(run[LAST], role="weight_gradients")
    check(f"seed {seed}: less than 3 % of the weight gradients are lost", gone < 0.03, gone)
if not quick():
    large, small = lost(train(0, batch=256, last=100)[0][100]), lost(runs[0][100])
    check("at step 100, 8 times the batch loses more than twice as much", large > 2 * small, large)

# %% [markdown]
# ## 看一步
# 紧接着的下一步，这一次真的用 fp16（起点的 1 除外），也不做缩放，逐个算子看：哪些算子丢得最多？

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
# ## 练习
# 已知指数从 -40 到 -1 的梯度各有多少个。最小的 S = 2^k（k >= 0）是多少，才能使低于 2^-25 的梯度不超过 1 %？
# 给出的规范逐个尝试；请只遍历一次就算出来。


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
# **实际情况。** 框架并不画这张直方图，而是不断增大 S，直到有数溢出为止（第 09 课）。bf16 的指数范围与 fp32
# 相同，在这里什么也不丢。fp16 在 S = 1 时丢掉的东西也未必要紧：这个模型不做缩放也训练得一样好（第 09 课），
# 只是没有余量了。
#
# **自己动手。** 1. 换成 `data="zen"`，这段文本上的损失降不到那么低：丢掉的也一样多吗？
# 2. 改用 e5m2 来数，它的最小数是 2^-16。3. 训练到第 1000 步再看。
#
# **延伸阅读。** Micikevicius 等 2018，图 3：一个检测网络的激活梯度有 67 % 是零；2^-27 到 2^-24 之间的那些对训练
# 有用，再小的就没有用了。
