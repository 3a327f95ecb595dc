"""Sentences about runs, made from what was measured and from nothing else.

Each is: how the run ended compared with the reference; what its formats did that explains it, or
that the loss does not show.  The limits below decide which words are used.
"""

from __future__ import annotations

from math import isfinite, isnan, log2

from precsim.runs.summary import Summary
from precsim.show.style import power, share

LEVEL = 0.01
"""Validation losses this close, relatively, count as the same."""

LOST = 0.25
"""A loss this far above the reference, relatively, is not learning the same thing any more."""

WORTH_SAYING = 0.05
"""Shares of flushed gradients and lost updates below this are not mentioned as damage."""


def verdict(run: Summary, reference: Summary | None) -> str:
    """Return one sentence about a run, against the reference run on the same data, if there is one.

    A run that died is said to be dead; a reference that died is not compared with.
    """
    sentence, fine = _ending(run, reference)
    if damage := " and ".join(_damage(run)):
        sentence += f", and the loss does not show that {damage}" if fine else f": {damage}"
    elif fine and not isnan(run.flushed):
        tiny = share(run.flushed)
        little = f"{tiny if tiny[0] == '<' else f'only {tiny}'} of its gradients underflow"
        sentence += f": {little if run.flushed else 'its gradients lose nothing'}"
    return f"{sentence}{_skips(run)}."


def learned(run: Summary, reference: Summary) -> bool:
    """Return whether a run came near the reference: alive, and not `LOST`."""
    if run.diverged or reference.diverged:
        return not run.diverged
    return not _guesses(run, reference) and run.valid_loss <= reference.valid_loss * (1 + LOST)


def _guesses(run: Summary, reference: Summary) -> bool:
    """Return whether a run is worse than guessing evenly, and its reference is better than it."""
    return run.valid_loss > max(run.guess, reference.valid_loss * (1 + LEVEL))


def _ending(run: Summary, reference: Summary | None) -> tuple[str, bool]:
    """Say how a run ended; and whether that is as good as the reference."""
    if run.diverged:
        where = f" at step {run.died_at}" if run.died_at is not None else ""
        return f"dies{where}: its weights are no longer finite", False
    ours = run.valid_loss
    if reference is None:
        return f"ends with a validation loss of {ours:.2f} (guessing: {run.guess:.2f})", True
    best = reference.valid_loss
    if run is reference:
        said = f"is the reference, with a validation loss of {ours:.2f}"
        if ours > run.guess * (1 + LEVEL):
            return f"{said}, worse than guessing ({run.guess:.2f})", False
        return said, True
    if not isfinite(best) or not isfinite(ours):
        return f"ends with a validation loss of {ours:.2f}", True
    compared = f"a validation loss of {ours:.2f} against {best:.2f}"
    gap = ours / best - 1 if best else 0.0
    if _guesses(run, reference):
        return f"is worse than guessing, {compared} (guessing: {run.guess:.2f})", False
    if gap > LOST:
        return f"hardly learns, {compared}", False
    if gap > LEVEL:
        return f"falls {share(gap)} behind, {compared}", False
    if gap < -LOST:
        return f"ends far below the reference, {compared}", True
    return f"keeps up with the reference, {compared}", True


def _damage(run: Summary) -> list[str]:
    """List what rounding took, where it is worth saying."""
    found = []
    if run.flushed >= WORTH_SAYING:
        chance = ", though by chance and so right on average" if run.chance_gradients else ""
        found.append(f"{share(run.flushed)} of its gradients underflow to zero{chance}")
    if run.lost_updates >= WORTH_SAYING:
        chance = ", though by chance and so right on average" if run.chance_weights else ""
        found.append(f"{share(run.lost_updates)} of its weight updates change nothing{chance}")
    return found


def _skips(run: Summary) -> str:
    if not run.skipped:
        return ""
    first, last = run.scales
    moved = f"moved from {_scale(first)} to {_scale(last)}"
    if last == first:
        moved = f"stayed near {_scale(last)}"
    steps = "1 step was" if run.skipped == 1 else f"{run.skipped} steps were"
    return f"; {steps} skipped while the loss scale {moved}"


def _scale(scale: float) -> str:
    """Return a loss scale as it is, or as a power of two where that is shorter."""
    text = f"{scale:g}"
    exponent = log2(scale) if "e" in text and 0 < scale < float("inf") else 0.5
    return power(exponent) if exponent.is_integer() else text
