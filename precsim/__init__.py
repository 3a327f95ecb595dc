"""precsim: watch what low precision does to training.

A small transformer is trained in NumPy, and every tensor operation, forward, backward and update,
is computed wide and rounded once to an emulated number format.  The names below are the public
surface; those that look into a run, draw it, or test formats, are loaded when they are first used.
"""

__version__ = "0.1.0"  # first: parts of the package write it into what they make

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from precsim.engine import ops
from precsim.engine.context import Context, current, scope, using
from precsim.engine.delayed import Delays
from precsim.engine.policy import Policy
from precsim.engine.precision import Accumulator, Precision
from precsim.engine.rule import Rule
from precsim.engine.tensor import Tensor, tensor
from precsim.formats import arithmetic, exact
from precsim.formats.accounting import Counts, quantize_counted
from precsim.formats.codes import decode, encode
from precsim.formats.diagnose import Diagnosis, diagnose
from precsim.formats.explain import explain
from precsim.formats.format import Format
from precsim.formats.modes import Stochastic
from precsim.formats.profiles import PROFILES, Profile
from precsim.formats.quantize import quantize
from precsim.formats.registry import FORMATS, format
from precsim.formats.scaled import Block, Scaled, ScaleRule
from precsim.formats.stochastic import prob_up
from precsim.nn import functional, optim, scaling
from precsim.nn.gpt import GPT, GPTConfig
from precsim.nn.grad_scaler import GradScaler
from precsim.observe.counters import Counters, OpCounts
from precsim.recipes import RECIPES, Recipe, recipe
from precsim.report.write import report  # over the package of that name, whose parts stay there
from precsim.runs.config import TrainConfig
from precsim.runs.run import open_run as open
from precsim.runs.train import Run, resume, train
from precsim.show.observed import observe  # over the package of that name, whose parts stay there

if TYPE_CHECKING:
    from precsim import testing
    from precsim.analyse.ask import blame, diff, search
    from precsim.analyse.cost import cost
    from precsim.analyse.twins import drifts as drift
    from precsim.runs.sweep import sweep
    from precsim.show import plot
    from precsim.show.gallery import draw as figure

__all__ = [
    "FORMATS",
    "GPT",
    "PROFILES",
    "RECIPES",
    "Accumulator",
    "Block",
    "Context",
    "Counters",
    "Counts",
    "Delays",
    "Diagnosis",
    "Format",
    "GPTConfig",
    "GradScaler",
    "OpCounts",
    "Policy",
    "Precision",
    "Profile",
    "Recipe",
    "Rule",
    "Run",
    "ScaleRule",
    "Scaled",
    "Stochastic",
    "Tensor",
    "TrainConfig",
    "arithmetic",
    "blame",
    "cost",
    "current",
    "decode",
    "diagnose",
    "diff",
    "drift",
    "encode",
    "exact",
    "explain",
    "figure",
    "format",
    "functional",
    "observe",
    "open",
    "ops",
    "optim",
    "plot",
    "prob_up",
    "quantize",
    "quantize_counted",
    "recipe",
    "report",
    "resume",
    "scaling",
    "scope",
    "search",
    "sweep",
    "tensor",
    "testing",
    "train",
    "using",
]

# What stands over a package lacks its modules; for `import precsim.observe.trace as m` Python then
# looks in `sys.modules`, under the name that the attribute `precsim.observe` says it has.
observe.__name__, report.__name__ = "precsim.observe", "precsim.report"


_LATER = {
    "blame": ("precsim.analyse.ask", "blame"),
    "cost": ("precsim.analyse.cost", "cost"),
    "diff": ("precsim.analyse.ask", "diff"),
    "drift": ("precsim.analyse.twins", "drifts"),
    "figure": ("precsim.show.gallery", "draw"),
    "plot": ("precsim.show.plot", ""),
    "search": ("precsim.analyse.ask", "search"),
    "sweep": ("precsim.runs.sweep", "sweep"),
    "testing": ("precsim.testing", ""),
}
"""Names that are loaded when they are first used: name -> module, its name there ("": all of it)."""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING", "import_module", "sys"})


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        msg = f"module 'precsim' has no attribute {name!r}"
        raise AttributeError(msg, name=name, obj=sys.modules[__name__])
    place, there = _LATER[name]
    module = import_module(place)
    return getattr(module, there) if there else module
