"""What is in which format under a recipe, found out by running one step of a tiny GPT under it.

`rows` is the table that `precsim recipes` prints, `diff` what `precsim recipes diff A B` does.
Nothing here reads a policy's rules: it looks at what they did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from precsim.engine.context import using
from precsim.engine.dispatch import Event
from precsim.engine.precision import Precision
from precsim.engine.rule import Saved
from precsim.formats.modes import rounding_mode
from precsim.nn import scaling
from precsim.nn.gpt import GPT, GPTConfig
from precsim.nn.grad_scaler import GradScaler
from precsim.recipes.recipe import Recipe
from precsim.recipes.registry import RECIPES, recipe

TINY = GPTConfig(layers=1, heads=2, width=32, context=8, vocabulary=32)

PARTS = ("embedding", "linear", "attention", "softmax", "layer norm", "gelu", "residual", "loss",
         "scaled loss")  # fmt: skip
"""Where an op of the GPT belongs; "attention" is its two products and the scaling of the scores."""


@dataclass(frozen=True)
class Trace:
    """Formats by part of the model, each in the order in which it was first seen.

    `forward` and `backward` are those of activations and their gradients, `weight_gradients` those
    in which gradients of weights are computed, `grad` those in which they are handed over; `casts`
    counts changes of format in one step.  `operands` are those of the three products of the linear
    layers between embedding and head: "left x right", with blocks as the rule spells them, and
    `rotated` the products whose operands a Hadamard rotation comes before.
    `stored` has weights, masters and states, by role.
    """

    forward: dict[str, str]
    backward: dict[str, str]
    weight_gradients: dict[str, str]
    grad: str
    casts: int
    operands: dict[str, str]
    rotated: str
    stored: dict[str, str]


STORED = {"weights": ("",), "master_weights": ("",), "optimizer_state": (".m", ".v")}
"""Role of a tensor that is kept -> what follows its parameter's name in its own."""

PRODUCTS = {
    "activations": "forward",
    "gradients": "input gradient",
    "weight_gradients": "weight gradient",
}
"""Role of a linear layer's product -> what it is called."""


@dataclass(frozen=True)
class Row:
    """One recipe in the table; formats, several joined by "/" in the order in which they occur."""

    name: str
    weights: str
    master: str
    operands: str
    matmuls: str
    softmax: str
    norm: str
    gelu: str
    residual: str
    loss: str
    backward: str
    weight_gradients: str
    grad: str
    update: str
    state: str
    scaling: str
    casts: int
    about: str


@dataclass(frozen=True)
class Difference:
    """One thing that two recipes do differently."""

    where: str
    what: str
    a: str
    b: str


class _Notes:
    """What an observer of one step writes down; each precision once, in the order of its coming."""

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, Counter[str]]] = {}
        self.products: dict[str, Counter[str]] = {}
        self.modes: dict[tuple[str, str], str] = {}
        self.rotated: dict[str, None] = {}
        self.casts = 0

    def __call__(self, event: Event) -> None:
        if event.op == "cast" and event.scope != "seed":
            self.casts += 1
            self.modes[event.scope, event.format.name] = str(event.precision.rounding)
            return
        if event.op == "hadamard":
            self.rotated[PRODUCTS[event.role]] = None
            return
        part = _part(event)
        if event.kind == "matmul" and event.scope.startswith("blocks.") and part == "linear":
            operands = _operands(event, self.modes)
            self.products.setdefault(PRODUCTS[event.role], Counter())[operands] += 1
        role = self.parts.setdefault(event.role, {})
        role.setdefault(part, Counter())[_name(event)] += 1

    def of(self, role: str) -> dict[str, str]:
        """Return the precisions of each part that had results in a role."""
        found = self.parts.get(role, {})
        return {part: "/".join(found[part]) for part in PARTS if part in found}


def trace(one: Recipe) -> Trace:
    """Run one step of a tiny GPT and return what was in which format."""
    notes = _Notes()
    with using(one.policy):
        model = GPT(TINY)
        tokens = np.arange(2 * TINY.context).reshape(2, TINY.context) % TINY.vocabulary
        with using(observers=[notes]):
            loss = model.loss(tokens, tokens)
            GradScaler(scaling.parse(one.loss_scale)).scale(loss).backward()
    grads = [parameter.grad for parameter in model.parameters.values()]
    handed = [grad.format.name for grad in grads if grad is not None and grad.format]
    return Trace(
        notes.of("activations"),
        notes.of("gradients"),
        notes.of("weight_gradients"),
        "/".join(dict.fromkeys(handed)),
        notes.casts,
        {product: ", ".join(found) for product, found in notes.products.items()},
        ", ".join(notes.rotated),
        {role: _stored(one, role, ends, model) for role, ends in STORED.items()},
    )


def _stored(one: Recipe, role: str, ends: Iterable[str], model: GPT) -> str:
    """Return the precisions in which a role's states of all parameters are kept, each once."""
    names = [f"{name}{end}" for end in ends for name in model.parameters]
    return "/".join(dict.fromkeys(str(one.policy.stored(role, name)) for name in names))


def row(one: Recipe) -> Row:
    """Return what the table says of one recipe."""
    seen = trace(one)
    policy, forward = one.policy, seen.forward
    return Row(
        name=one.name,
        weights=seen.stored["weights"],
        master=seen.stored["master_weights"],
        operands="/".join(dict.fromkeys(" x ".join(seen.operands.values()).split(" x "))),
        matmuls=_joined(forward, "linear", "attention"),
        softmax=forward["softmax"],
        norm=forward["layer norm"],
        gelu=forward["gelu"],
        residual=forward["residual"],
        loss=forward["loss"],
        backward=_joined(seen.backward, "linear", "attention"),
        weight_gradients=seen.weight_gradients["linear"],
        grad=seen.grad,
        update=str(policy.update),
        state=_state(one, seen),
        scaling=_scaling(one),
        casts=seen.casts,
        about=one.about,
    )


def rows(recipes: Iterable[Recipe] = tuple(RECIPES.values())) -> list[Row]:
    """Return the table, a row for each recipe."""
    return [row(one) for one in recipes]


def facts(one: Row) -> dict[str, Any]:
    """Return a recipe as plain values for JSON: title, settings, and the row of the table."""
    known = RECIPES[one.name]
    return {"title": known.title, **known.settings(), "formats": asdict(one)}


def diff(a: str | Recipe, b: str | Recipe) -> list[Difference]:
    """Return what two recipes do differently, in the order of a training step; [] if nothing.

    Raises `ValueError` for an unknown name.
    """
    first, second = (recipe(one) if isinstance(one, str) else one for one in (a, b))
    found: list[Difference] = []
    x, y = trace(first), trace(second)

    def compare(where: str, left: dict[str, str], right: dict[str, str]) -> None:
        for what in dict.fromkeys([*left, *right]):
            one, other = left.get(what, "-"), right.get(what, "-")
            if one != other:
                found.append(Difference(where, what, one, other))

    compare("weights", _weights(first, x), _weights(second, y))
    compare("operands", _multiplied(first, x), _multiplied(second, y))
    compare("forward", x.forward, y.forward)
    compare("backward", x.backward, y.backward)
    compare("weight gradients", x.weight_gradients, y.weight_gradients)
    compare("weight gradients", {"handed over in": x.grad}, {"handed over in": y.grad})
    compare("accumulators", _accumulators(first), _accumulators(second))
    compare("update", _update(first, x), _update(second, y))
    compare("loss scale", *_scalers(first, second))
    compare("casts in a step", {"number": str(x.casts)}, {"number": str(y.casts)})
    return found


def _part(event: Event) -> str:
    """Return where an op belongs, by its scope and op."""
    last = event.scope.rpartition(".")[2]
    if event.scope in ("seed", "loss.scale"):
        return "scaled loss"
    if event.scope == "loss" or last == "gelu":
        return last
    if last.startswith("ln"):
        return "layer norm"
    if last == "attn":
        plain = event.kind == "matmul" or event.op == "mul"
        return "attention" if plain else "softmax"
    if event.scope in ("wte", "wpe"):
        return "residual" if event.op == "add" else "embedding"
    if event.op in ("add", "accumulate") and event.scope.startswith("blocks."):
        return "residual"
    return "linear"


def _name(event: Event) -> str:
    """Return the precision as a policy spells it, or the format that "widest" came to."""
    return event.format.name if event.precision.format == "widest" else str(event.precision)


def _joined(formats: dict[str, str], *parts: str) -> str:
    names = [name for part in parts for name in formats[part].split("/")]
    return "/".join(dict.fromkeys(names))


def _operands(event: Event, modes: dict[tuple[str, str], str]) -> str:
    """Return "left x right"; blocks of the right operand are turned back along its rows."""
    said = []
    for position, fmt in enumerate(event.input_formats[:2]):
        name = fmt.name if fmt else "fp64"
        mode = modes.get((event.scope, name), "nearest")
        turned = Precision(name, rounding_mode(mode)).for_operand(position)
        said.append(str(turned))
    return " x ".join(said)


def _multiplied(one: Recipe, seen: Trace) -> dict[str, str]:
    """Return what linear layers multiply, and how it comes to be that."""
    rules = one.policy.rules
    original = any(rule.saved is Saved.ORIGINAL for rule in rules)
    delayed = any(":delayed" in str(rule) for rule in rules)
    return {
        **seen.operands,
        "rotated before": seen.rotated or "-",
        "quantized": "anew for each product" if original else "once",
        "factors by": str(one.policy.delayed) if delayed else "-",
    }


def _weights(one: Recipe, seen: Trace) -> dict[str, str]:
    return {
        "stored": seen.stored["weights"],
        "master copy": seen.stored["master_weights"],
        "initially rounded to": str(one.policy.initial_weights or "-"),
    }


def _accumulators(one: Recipe) -> dict[str, str]:
    policy = one.policy
    named = {
        f"{rule.op}{' in ' + rule.scope if rule.scope != '*' else ''}": str(rule.accumulator)
        for rule in policy.rules
        if rule.accumulator
    }
    named["elsewhere"] = str(policy.accumulator or "wide")
    return named


def _update(one: Recipe, seen: Trace) -> dict[str, str]:
    entries = {name: str(value) for name, value in one.entries.items()}
    return {"arithmetic": str(one.policy.update), "state": _state(one, seen), **entries}


def _state(one: Recipe, seen: Trace) -> str:
    """Return what the optimizer's state is stored in; its own code first, where it has one."""
    named = seen.stored["optimizer_state"]
    return f"8-bit code/{named}" if one.entries.get("optimizer") == "adamw8bit" else named


def _scaling(one: Recipe) -> str:
    """Return the kind of loss scale and where it starts: "torch from 65536"."""
    scaler = scaling.parse(one.loss_scale)
    if isinstance(scaler, scaling.NoScale):
        return "none"
    return f"{one.loss_scale.partition(':')[0]} from {scaler.scale:g}"


def _scalers(a: Recipe, b: Recipe) -> tuple[dict[str, str], dict[str, str]]:
    """Return the constants of two dynamic scales, or else what kind of scale each is."""
    first, second = scaling.parse(a.loss_scale), scaling.parse(b.loss_scale)
    if type(first) is not type(second):
        return {"kind": _scaling(a)}, {"kind": _scaling(b)}
    names = [f.name for f in fields(first) if f.name not in ("skips", "clean_steps", "tolerated")]
    left, right = ({n: f"{getattr(one, n)}" for n in names} for one in (first, second))
    return left, right
