"""The answer of size n: an average over the first n leaves, their sum, or the n-th leaf alone.

The average is of logits or of probabilities. `"sum"` adds up logits, for leaves that are
trained to correct those before them. `"last"` is for networks with exits, where each leaf
is better than the one before. Two are meant to lose fewer right answers as leaves are added,
in models trained in whichever way (Jazbec et al., "Towards Anytime Classification in Early-Exit
Architectures by Enforcing Conditional Monotonicity", NeurIPS 2023): `"product"` multiplies
what is above zero of the logits, so that a leaf rules classes out, and `"cached_<average>"`
keeps the answer of a smaller size where the new one is less sure.

Inference adds up one contribution per leaf (`contribution`, `start`, `add`) and turns the
sum into an answer (`answer`), so that it can stop and go on between leaves;
training and metrics take all sizes at once (`ensemble_log_probabilities`).
"""

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from hne_tf.errors import InputError
from hne_tf.exported.interface import CACHED

# The smallest normal float32 keeps the log of a vanished probability finite.
_SMALLEST_FLOAT32 = 1.18e-38

# What a class that a leaf rules out keeps of the product: with none, all could be ruled out.
_RULED_OUT = 1e-3

# Odds against answers that are as sure as any.
_CERTAIN = math.exp(-80)

_UNCACHED = ("logits", "probabilities", "last", "sum", "product")
AVERAGES = (*_UNCACHED, *(CACHED + average for average in _UNCACHED))


def check_average(average: str) -> str:
    """Returns `average`; raises `InputError` unless it is one of `AVERAGES`."""
    if average not in AVERAGES:
        raise InputError(f"average must be one of {', '.join(AVERAGES)}, got {average!r}")
    return average


def check_fits(average: str, has_exits: bool) -> str:
    """Returns `average`; raises `InputError` for one of exits in a tree, or an unknown one."""
    if uncached(average) == "last" and not has_exits:
        raise InputError(
            "average must not take the last leaf alone in a tree, whose leaves are equals, got "
            f"{average!r}, which is for networks with exits"
        )
    return average


def uncached(average: str) -> str:
    """The average whose answers are kept, or `average` itself if they are not."""
    return check_average(average).removeprefix(CACHED)


def is_cached(average: str) -> bool:
    """Whether the answer of a smaller size is kept where the new one is less sure."""
    return check_average(average).startswith(CACHED)


def leaves(size: int, average: str = "logits") -> range:
    """The leaves (from 0) whose outputs the answer of `size` is made of."""
    return range(size - 1 if check_average(average) == "last" else 0, size)


def contribution(leaf_logits: Any, average: str = "logits") -> Any:
    """What each leaf adds to the running sum: its logits, its probabilities or a log.

    Args:
      leaf_logits: `[..., classes]`.
      average: one of `AVERAGES`.

    Returns:
      The same shape.
    """
    plain = uncached(average)
    if plain == "product":
        return ops.log(ops.maximum(leaf_logits, _RULED_OUT))
    return ops.softmax(leaf_logits, axis=-1) if plain == "probabilities" else leaf_logits


def start(leaf_contribution: Any, average: str = "logits") -> Any:
    """The running sum after the first leaf, `[batch, running_sum_width]`."""
    if not is_cached(average):
        return leaf_contribution
    logits = answer(leaf_contribution, 1, uncached(average))[0]
    return ops.concatenate([leaf_contribution, logits], axis=-1)


def add(running_sum: Any, leaf_contribution: Any, size: int, average: str = "logits") -> Any:
    """The running sum after one more leaf; where the last leaf answers, it is that leaf's alone.

    Args:
      running_sum: `[batch, running_sum_width]`, see `exported.interface`.
      leaf_contribution: of the next leaf, `[batch, classes]`.
      size: number of leaves with that one.
      average: one of `AVERAGES`.
    """
    plain = uncached(average)
    classes = leaf_contribution.shape[-1]
    before = running_sum[:, :classes]
    total = leaf_contribution if plain == "last" else before + leaf_contribution
    if not is_cached(average):
        return total
    kept, new = running_sum[:, classes:], answer(total, size, plain)[0]
    return ops.concatenate([total, _surer(new, kept)], axis=-1)


def add_all(leaf_contributions: Any, average: str = "logits") -> Any:
    """The running sum `[batch, running_sum_width]` of all of `[batch, leaves, classes]` at once."""
    if not is_cached(average):
        return ops.sum(leaf_contributions, axis=1)
    first, *others = ops.unstack(leaf_contributions, axis=1)
    running_sum = start(first, average)
    for size, each in enumerate(others, start=2):
        running_sum = add(running_sum, each, size, average)
    return running_sum


def answer(
    running_sum: Any, size: int, average: str = "logits", temperature: float = 1.0
) -> tuple[Any, Any]:
    """The ensemble's answer from the sum of `size` contributions.

    Args:
      running_sum: `[batch, running_sum_width]`, see `exported.interface`.
      size: number of leaves evaluated.
      average: one of `AVERAGES`.
      temperature: divides the logits.

    Returns:
      `(logits, probabilities)`, each `[batch, classes]`; when probabilities are
      averaged, the logits are the log of their mean.
    """
    if is_cached(average):
        mean, averaged = running_sum[:, running_sum.shape[-1] // 2 :], False
    else:
        together = average in ("sum", "product")
        mean = running_sum / (1 if together else len(leaves(size, average)))
        averaged = average == "probabilities"
    logits = ops.log(ops.maximum(mean, _SMALLEST_FLOAT32)) if averaged else mean
    if temperature == 1.0:
        return logits, mean if averaged else ops.softmax(logits, axis=-1)
    logits = logits / temperature
    return logits, ops.softmax(logits, axis=-1)


def ensemble_log_probabilities(
    leaf_logits: Any, sizes: Sequence[int], average: str = "logits", temperature: float = 1.0
) -> Any:
    """Log-probabilities of the ensembles of the first leaves.

    Args:
      leaf_logits: `[batch, leaves, classes]`.
      sizes: ensemble sizes, each at most `leaves`.
      average: `"logits"`: softmax of the mean logits; `"probabilities"`: mean
        of the leaves' softmax; `"last"`: softmax of the last leaf's logits; `"sum"`:
        softmax of the sum of the logits; `"product"`, `"cached_<average>"`: see the module.
      temperature: divides the logits before the softmax.

    Returns:
      `[batch, len(sizes), classes]`.
    """
    if is_cached(average):
        return _cached_log_probabilities(leaf_logits, sizes, uncached(average), temperature)
    if average == "probabilities":
        scores = ops.log_softmax(leaf_logits / temperature, axis=-1)
        return ops.stack(
            [ops.logsumexp(scores[:, :size], axis=1) - math.log(size) for size in sizes], axis=1
        )
    if average == "product":
        leaf_logits = contribution(leaf_logits, average)
    spans = [leaves(size, average) for size in sizes]
    together = ops.sum if average in ("sum", "product") else ops.mean
    logits = [together(leaf_logits[:, span.start : span.stop], axis=1) for span in spans]
    return ops.log_softmax(ops.stack(logits, axis=1) / temperature, axis=-1)


def _cached_log_probabilities(
    leaf_logits: Any, sizes: Sequence[int], average: str, temperature: float
) -> Any:
    """Log-probabilities of the surest answer up to each size, `[batch, len(sizes), classes]`."""
    every = ensemble_log_probabilities(leaf_logits, range(1, max(sizes) + 1), average, temperature)
    kept, *others = ops.unstack(every, axis=1)
    surest = [kept]
    for new in others:
        surest.append(_surer(new, surest[-1]))
    return ops.stack([surest[size - 1] for size in sizes], axis=1)


def _surer(new: Any, kept: Any) -> Any:
    """Of each image the logits that are surer, the new ones if they are as sure."""
    return ops.where(_surety(new) >= _surety(kept), new, kept)


def _surety(logits: Any) -> Any:
    """Log-odds of the likeliest class against all others, `[batch, 1]`.

    In the order of its probability, which float32 rounds to 1 where answers are sure.
    """
    odds = ops.exp(logits - ops.max(logits, axis=-1, keepdims=True))
    is_top = ops.equal(odds, 1.0)
    others = ops.sum(ops.where(is_top, 0.0, odds), axis=-1, keepdims=True)
    ties = ops.sum(ops.cast(is_top, logits.dtype), axis=-1, keepdims=True) - 1.0
    return -ops.log(ops.maximum(others + ties, _CERTAIN))
