# %% [markdown]
# # 01 - 格点：一种格式就是一个数的集合
#
# **只讲一件事。** 一种数值格式是一个有限的数集。任何两个相邻的 2 的幂之间，它的数都一样多；所以数越大，数与数之间的
# 间隔也越大，而落在间隔里的结果必须挪动。
#
# *你将要* 列出八个二进制位能表示的每一个数，量一量间隔，再用七种格式计算 0.1 加 0.2。
# *你会学到* 怎样读一种格式的三个指标：有多细，能有多小，能有多大。
#
# *前置：* Python；不需要懂浮点数。
# *用时：* 单核约 2 秒。
# *论文：* Micikevicius 等 2022，arXiv:2209.05433，表 1：两种 8 位格式。
# *产出：* `figures/01_the_grid.png`（四种格式的数彼此相隔多远，与数本身的大小相比）。

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, predict, save
from precsim.show.canvas import RC, WIDTH
from precsim.show.style import GREY, look

# %% [markdown]
# ## 八个二进制位
# 8 位的编码有 256 种，所以 8 位的格式最多有 256 个数。在 e4m3 里，第一位是符号，接下来 4 位是*指数* E，最后 3 位是
# *尾数* F：
#
#     值  =  (-1)^符号  *  2^(E - 7)  *  (1 + F/8)        E 从 1 到 15
#     值  =  (-1)^符号  *  2^-6       *  (0 + F/8)        E = 0：*次正规数*
#
# 有一种编码，E = 15 且 F = 7，留给“不是数”（NaN）。我们把它们都写出来。

# %%
values = sorted(
    (2.0 ** (E - 7) * (1 + F / 8) if E else 2.0**-6 * F / 8)
    for E in range(16) for F in range(8) if (E, F) != (15, 7)
)  # fmt: skip
print("the first six:", *values[:6])
check("there are 127 of them from 0 up", len(values) == 127)
check("precsim has the same ones", values == ps.format("e4m3").values()[-127:])

# %% [markdown]
# **预测。** 256 个编码，其中一半带负号。e4m3 里最大的数是多少？

# %%
my_guess = None  # a number

# %%
predict("the largest number of e4m3", my_guess, values[-1], tol=0)
print("the last ten: ", *values[-10:])
e4m3, e5m2 = ps.format("e4m3"), ps.format("e5m2")
source = "Micikevicius et al. 2022, table 1"
check("e4m3 goes up to 448", e4m3.max == values[-1] == 448, source=source)
check("its smallest normal number is 2^-6", e4m3.smallest_normal == 2.0**-6, source=source)
check("its smallest number is 2^-9", e4m3.smallest_subnormal == values[1] == 2.0**-9, source=source)
check("e5m2 goes up to 57344", e5m2.max == 57344, source=source)
check("its smallest normal number is 2^-14", e5m2.smallest_normal == 2.0**-14, source=source)
check("its smallest number is 2^-16", e5m2.smallest_subnormal == 2.0**-16, source=source)

# %% [markdown]
# 从尾数拿一位给指数：上端大了 128 倍，下端小了 128 倍，代价是中间的数少了一半。每种格式都是这样取舍的。
# 想知道范围，就看指数位数；想知道精细程度，就看尾数位数。
#
# ## 间隔
# 在 e4m3 里，1 到 2 之间有 8 步，所以间隔是 1/8；2 到 4 之间也是 8 步，间隔就是 1/4。x 处的间隔叫做*末位单位*，
# 记作 ulp(x)。与 x 本身相比，它总在 2^-4 和 2^-3 之间，直到次正规数为止。次正规数之间全都相隔 2^-9，
# 所以在那里 x 变小而间隔不变，x 能留下的东西越来越粗。

# %%
binade = [x for x in values if 16 <= x <= 32]
print("from 16 to 32:", *binade)
check("from 16 to 32 there are 8 gaps of 2", set(np.diff(binade)) == {2.0})
for x in (1.0, 16.0, 2.0**-7, 2.0**-9):
    print(f"at {x:<12g} the gap is {e4m3.ulp(x):<12g} {e4m3.ulp(x) / x:.1%} of it")
check("at 16 the gap is an eighth of x", e4m3.ulp(16.0) / 16 == 1 / 8)
check("at 2^-9 it is all of x", e4m3.ulp(2.0**-9) / 2.0**-9 == 1)

# %% [markdown]
# 不在格点上的数移到最近的格点，所以最多移动半个间隔：在 e4m3 的正规范围里，相对误差不超过 2^-4。
# 这个上界叫做 u，即*单位舍入误差*（unit roundoff）。
#
# ## 0.1 + 0.2
# 0.1 不在其中任何一种格式里，0.2 和 0.3 也不在：用二进制写，它们没有最后一位。每个数都移到最近的格点，它们的和也是
# 这样。0.1 + 0.2 是不是*等于* 0.3，全凭运气。
#
# **预测。** 在 fp64、fp32、tf32、fp16、bf16、e5m2、e4m3 之中，有几种格式里相等？

# %%
my_guess = None  # from 0 to 7


# %%
def adds_up(fmt):
    """Return whether 0.1 + 0.2 == 0.3, everything rounded to the format."""
    a, b, c = (float(ps.quantize(number, fmt)) for number in (0.1, 0.2, 0.3))
    return ps.quantize(a + b, fmt) == c


FORMATS = ("fp64", "fp32", "tf32", "fp16", "bf16", "e5m2", "e4m3")
yes = [fmt for fmt in FORMATS if adds_up(fmt)]
predict("formats, of 7, in which 0.1 + 0.2 == 0.3", my_guess, len(yes))
print("it is in", *yes)
check("it is in fp32, bf16 and e4m3, and not in the finer fp64", yes == ["fp32", "bf16", "e4m3"])

# %% [markdown]
# ## 一张图看全
# 各种大小的数，它的间隔与它本身之比。每条线都是锯齿：从一个 2 的幂到下一个，间隔不变而 x 翻倍。在平坦部分的左边，
# 格式的指数用完了，这个比值不断变大，直到间隔与 x 一样大：比它的一半还小的数就变成零。在右边，线止于最大的数。

# %%
SHOWN = ("fp16", "bf16", "e5m2", "e4m3")
x = 2.0 ** np.linspace(-30, 20, 2501)
gaps = {}
for name in SHOWN:
    fmt = ps.format(name)
    inside = (x >= fmt.smallest_subnormal) & (x <= fmt.max)
    gaps[name] = np.where(inside, [fmt.ulp(v) / v for v in x], np.nan)

with plt.rc_context(RC):
    fig, axes = plt.subplots(figsize=(WIDTH, 4.6), layout="constrained")
    for name in SHOWN:
        fmt, style = ps.format(name), look(name)
        axes.plot(np.log2(x), np.log2(gaps[name]), color=style.hue, lw=1.8)
        end = min(np.log2(fmt.max), 20)
        below = name == "e4m3"  # above it is e5m2's line
        axes.annotate(
            f"{name}, {fmt.man_bits} fraction bits", (end, -fmt.man_bits - below),
            xytext=(0, -6 if below else 4), textcoords="offset points", ha="right",
            va="top" if below else "bottom", color=style.hue, weight="bold",
        )  # fmt: skip
        if fmt.max < x[-1]:
            axes.plot(end, -fmt.man_bits - 1, "o", color=style.hue, ms=7)
    axes.axhline(0, color=GREY, lw=1, ls="dotted")
    axes.text(-29.5, 0.15, "the gap is as large as the number", color=GREY)
    axes.set(xlim=(-30, 20.5), ylim=(-12, 1.2), xlabel="number")
    axes.set_xticks(range(-30, 21, 10), [f"$2^{{{k}}}$" for k in range(-30, 21, 10)])
    axes.set_yticks(range(-12, 1, 3), [f"$2^{{{k}}}$" for k in range(-12, 1, 3)])
    axes.set_title("The gap to the next number, beside the number")
save(
    fig,
    "01_the_grid",
    {"log2 of the number": np.log2(x[::10])} | {n: g[::10] for n, g in gaps.items()},
)

# %% [markdown]
# ## 练习
# 每种格式都会数数：1、2、3……一直数到间隔变成 2。有 `man_bits` 个尾数位的格式，第一个没有的正整数是多少？
# （假定指数位够用。）给出的规范一个个地数；请找出公式。


# %%
def by_counting(man_bits):
    n = 1
    while ps.quantize(float(n), f"e8m{man_bits}") == n:
        n += 1
    return n


@exercise(spec=by_counting, strategy=lambda st: st.integers(1, 10))
def first_that_is_missing(man_bits):
    raise NotImplementedError


# %%
check("it is 9 in e5m2", by_counting(2) == 9)
check("17 in e4m3", by_counting(3) == 17)
check("257 in bf16", by_counting(7) == 257)
check("2049 in fp16", by_counting(10) == 2049)

# %% [markdown]
# **实际情况。** 单说 e4m3 这个名字还不够。如果照 IEEE 754 的做法有无穷大，它的最大数是 240；NVIDIA、Arm 和 Intel
# （以及 OCP）放弃了无穷大，换来多一个二进制数量级，即 448；AMD 的 MI300 和 Graphcore 用第三种。precsim 的
# `e4m3_ieee`、`e4m3` 和 `e4m3fnuz` 就是这三种，其余的见 `precsim formats`。bf16 是 fp32 编码的上半部分。
#
# **自己动手。** 1. `precsim num 0.1 --format e4m3` 把一个数放到显微镜下。2. 把 `"e4m3fnuz"` 也画出来。
# 3. 自己拼一种格式：`ps.format("e6m9")`。
#
# **延伸阅读。** Micikevicius 等 2022，第 3 节，讲 e4m3 为什么没有无穷大。Goldberg 1991，
# “What every computer scientist should know about floating-point arithmetic”，第 1 节。
