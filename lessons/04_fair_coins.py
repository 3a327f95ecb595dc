# %% [markdown]
# # 04 - Fair coins: rounding by chance, and when it pays
#
# **One idea.** Stochastic rounding goes up with a probability that equals the distance. One rounding
# is worse than to nearest; but it is right on average, so many of them cancel, and what rounding to
# nearest drops every time is taken some of the time.
#
# *You will* add the same number 16,384 times in three ways of rounding and watch the errors grow.
# *You learn* the law of the square root, and two honest limits: data that need no coin, and coins of
# few bits.
#
# *Needs:* lesson 03 (sums that stop).
# *Runtime:* about 5 s, one CPU core.
# *Paper:* Connolly, Higham and Mary 2021, "Stochastic rounding and its probabilistic backward error
# analysis", SIAM J. Sci. Comput. 43(1).
# *Writes:* `figures/04_fair_coins.png` (The error of a long sum, rounded to nearest and by chance.)

# %%
import matplotlib.pyplot as plt
import numpy as np

import precsim as ps
from precsim.lesson import check, exercise, predict, quick, save, seeds
from precsim.show.canvas import QUIET, RC, WIDTH
from precsim.show.style import BLUE, GREY, VERMILLION

# %% [markdown]
# ## A coin for each rounding
# bf16 has 1 and 1.0078125, and nothing between. 1.002 lies a quarter of the way. To nearest it is 1,
# always. By chance it goes up with probability 0.256, so that its *expectation* is 1.002.

# %%
x = 1.002
draws = ps.quantize(np.full(10_000, x), "bf16", "stochastic", random=0)
up, share = ps.prob_up(x, "bf16"), (draws > 1).mean()
print("values:", *np.unique(draws), f" mean: {draws.mean():.6f}  probability: {up:.3f}")
check("its probability is its distance", abs(up - (x - 1) / 2**-7) < 1e-12)
check("so often it went up, within 2 %", abs(share - up) < 0.02, share)
check("the mean is nearer to x than any number of bf16", abs(draws.mean() - x) < 2e-4, draws.mean())

# %% [markdown]
# ## The same number, again and again
# Take a format of p = 14 significant bits, and add up one number n times, for 32 different numbers.
# As the total passes through a binade, each addition makes much the same error; to nearest they all
# point the same way, and add up. By chance each is as often up as down, on balance.
#
# **Predict.** When n is 100 times as large, the error of rounding to nearest, beside the total, is
# about 100 times as large. How many times as large is it when rounding by chance?

# %%
my_guess = None  # a number

# %%
FORMAT, REPLICAS, LAST = "e8m13", 32, 11 if quick() else 14
U = ps.format(FORMAT).u
N, COUNTS = 2**LAST, 2 ** np.arange(5, LAST + 1)


def errors(addend, rounding, seed):
    """Return the error of the running total beside the sum of sizes, rms over replicas, at COUNTS.

    `addend(rng, n)` gives the addends (n, REPLICAS); errors are in units of u.
    """
    x = ps.quantize(addend(np.random.default_rng(seed), N), FORMAT)
    coins = np.random.default_rng(seed + 1000)
    total, at = np.zeros(REPLICAS), {}
    exact, size = np.cumsum(x, axis=0), np.cumsum(np.abs(x), axis=0)
    for i in range(N):
        total = ps.quantize(total + x[i], FORMAT, rounding, random=coins)
        if i + 1 in COUNTS:
            at[i + 1] = np.sqrt(np.mean(((total - exact[i]) / size[i]) ** 2)) / U
    return np.array(list(at.values()))


def constant(rng, n):
    return np.tile(rng.uniform(1, 2, REPLICAS), (n, 1))


def between_0_and_1(rng, n):
    return rng.uniform(0, 1, (n, REPLICAS))


def of_both_signs(rng, n):
    return rng.standard_normal((n, REPLICAS))


def slope(found):
    """Return the power of n by which an error grows."""
    return float(np.polyfit(np.log2(COUNTS), np.log2(found), 1)[0])


WAYS = ("nearest", "stochastic", "toward_zero")
by_seed = {seed: {way: errors(constant, way, seed) for way in WAYS} for seed in seeds(3)}
curves = {"constant": by_seed[0]}
grown = 100 ** slope(by_seed[0]["stochastic"])
predict("growth by chance, for n 100 times as large", my_guess, grown, tol=3)
for seed, same in by_seed.items():
    powers = {way: slope(found) for way, found in same.items()}
    print(f"seed {seed}, power of n:", *(f"{w} {p:.2f}" for w, p in powers.items()), sep="  ")
    check(f"seed {seed}: to nearest it grows like n", powers["nearest"] > 0.85, powers["nearest"])
    check(f"seed {seed}: by chance like the root of n", 0.35 < powers["stochastic"] < 0.65,
          powers["stochastic"])  # fmt: skip
    check(f"seed {seed}: and it stays below 2 sqrt(n) u",
          np.all(same["stochastic"] < 2 * np.sqrt(COUNTS)))  # fmt: skip

# %% [markdown]
# ## Where a coin does not pay
# With addends that differ, errors to nearest differ too, in sign as well, and cancel by themselves.
# Then rounding to nearest grows like the square root as well, and as its single errors are smaller,
# it wins. Rounding by chance pays for data that repeat: the small steps of a training run, say, that
# for a long time all push a weight the same way.

# %%
for seed in seeds(3):
    mixed = {way: errors(between_0_and_1, way, seed) for way in WAYS}
    curves.setdefault("between 0 and 1", mixed)
    power = slope(mixed["nearest"])
    check(f"seed {seed}: to nearest, numbers from 0 to 1: the root of n", power < 0.65, power)
    signed = {way: errors(of_both_signs, way, seed)[-1] for way in WAYS}
    check(f"seed {seed}: with both signs nearest is better than chance",
          signed["nearest"] < signed["stochastic"], signed["stochastic"] / signed["nearest"])  # fmt: skip

# %% [markdown]
# ## A coin of few bits
# Hardware does not toss a coin with every probability; it adds r random bits below the last place and
# cuts off. A distance of less than 2^-r of a gap then counts as none, and is dropped every time.
# Start at 1.0 in bf16 and add a sixteenth of the gap 4096 times: in exact arithmetic that is 3.
#
# **Predict.** Where does it end with r = 4?

# %%
my_guess = None  # a number

# %%
ends = {}
for r in (2, 4, 8, 16):
    total, coins = np.ones(500), np.random.default_rng(r)
    for _ in range(4096):
        total = ps.quantize(total + 2.0**-7 / 16, "bf16", f"stochastic_a{r}", random=coins)
    ends[r] = total.mean()
predict("the end with r = 4", my_guess, ends[4], tol=0)
for r, end in ends.items():
    print(f"r = {r:2}: {end:.3f} on average")
check("with 2 bits it never moves", ends[2] == 1)
check("with 4 bits it stops at 2", ends[4] == 2)
check("with 16 bits it comes to 3, within 2 %", abs(ends[16] - 3) < 0.06, ends[16])

# %%
TITLES = {"constant": "The same number, n times", "between 0 and 1": "Numbers between 0 and 1"}
HUES = {"nearest": VERMILLION, "stochastic": BLUE, "toward_zero": GREY}
with plt.rc_context(RC):
    fig, panels = plt.subplots(1, 2, figsize=(WIDTH, 4.3), sharey=True, layout="constrained")
    n = np.log2(COUNTS)
    for axes, (kind, found) in zip(panels, curves.items(), strict=True):
        for way, values in found.items():
            axes.plot(n, np.log2(values), color=HUES[way], lw=2.4)
        axes.set_title(TITLES[kind], fontsize=13.5)
        axes.set_xticks(range(6, 15, 2), [f"$2^{{{k}}}$" for k in range(6, 15, 2)])
        axes.set_xlabel("n")
    panels[0].set_yticks(range(0, 13, 3), [f"$2^{{{k}}}$" for k in range(0, 13, 3)])
    panels[0].set_ylabel("error of the sum, in u")
    panels[0].text(9.6, 8.9, "cut off", color=GREY, ha="right")
    panels[0].text(12.4, 8.2, "to nearest", color=VERMILLION)
    panels[0].text(14, 6.3, "by chance", color=BLUE, ha="right")
    panels[0].plot(n, n / 2 - 3, color=QUIET, lw=1, ls="dotted")
    panels[0].text(14, 1.8, "the root of n", color=QUIET, ha="right")
    panels[1].text(11.5, 5.6, "by chance", color=BLUE, ha="right")
    panels[1].text(14, 2.6, "to nearest", color=VERMILLION, ha="right")
save(fig, "04_fair_coins", {"n": COUNTS} | curves)

# %% [markdown]
# ## Exercise
# Start at 1.0 in bf16 and add 2^-k of the gap there, again and again, with a coin of r bits
# (`stochastic_a`). Where does the total stop for good? The specification asks `prob_up`.


# %%
def by_asking(k, r):
    total = 1.0
    while ps.prob_up(total + 2.0 ** (-7 - k), "bf16", f"stochastic_a{r}") > 0:
        total *= 2  # it gets to the next power of two, where the gap doubles
    return total


@exercise(spec=by_asking, strategy=lambda st: st.tuples(st.integers(1, 12), st.integers(1, 16)))
def stops_at(k, r):
    raise NotImplementedError


# %% [markdown]
# **In practice.** AWS Trainium and Graphcore's processors round by chance in hardware, NVIDIA's
# Blackwell when it converts to fp4. PyTorch has it in torchao's optimizers, for bf16 weights. Chance
# must come from a generator that can be run again: precsim's words depend on seed, op, step and
# element, so a replay has the same bits.
#
# **On your own.** 1. Take p = 11 and numbers from 0 to 1: rounding to nearest loses again (lesson 03
# says why). 2. Try `"stochastic_equal"`, a coin that always is even. 3. `nearest_away`.
#
# **Further reading.** Connolly, Higham and Mary 2021, theorem 4.8, for the root of n. Croci et al. 2022,
# "Stochastic rounding: implementation, error analysis and applications", for hardware.
