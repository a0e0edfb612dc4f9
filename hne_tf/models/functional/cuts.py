"""Where a functional Keras model can be cut, and the best places for a number of blocks.

A model can be cut at a tensor that everything after it is computed from, and nothing else
before it. Walking the calls in order, that is where one tensor is left to be read.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence

import keras

from hne_tf.errors import InputError
from hne_tf.models.functional import graph, multiply_adds

# What a cut at the largest activation costs, as the squared deviation of a block from the
# mean cost: small enough that blocks are about equal first of all.
_ACTIVATION_PENALTY = 0.1


@dataclasses.dataclass(frozen=True)
class Place:
    """A tensor at which a model can be cut.

    Attributes:
      name: of the layer that gives the tensor.
      tensor: what the next block reads.
      position: number of calls before the cut.
      split: name of a layer with weights that is called on both sides, or None.
    """

    name: str
    tensor: keras.KerasTensor
    position: int
    split: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the activation of one image."""
        return tuple(self.tensor.shape[1:])

    @property
    def numbers(self) -> int:
        """Numbers in the activation of one image."""
        return math.prod(self.shape)


def places(model: keras.Model) -> list[Place]:
    """All places at which a functional model of known shapes can be cut, in order.

    Left out are outputs of layers that are called several times, whose names are ambiguous,
    and activations that are not float32.
    """
    calls = graph.calls(model)
    last_read = {id(model.outputs[0]): len(calls)}
    for index, call in enumerate(calls):
        for x in call.inputs:
            last_read[id(x)] = max(index, last_read.get(id(x), 0))
    counts = collections.Counter(id(call.operation) for call in calls)
    spans = _spans_of_weights(calls)
    found: list[Place] = []
    left = {id(x) for x in model.inputs}
    for index, call in enumerate(calls[:-1]):
        left |= {id(x) for x in call.outputs if id(x) in last_read}
        left -= {each for each in left if last_read[each] <= index}
        for tensor in call.outputs:
            named = counts[id(call.operation)] == 1
            if left == {id(tensor)} and named and _can_be_kept(tensor):
                split = next((name for name, a, b in spans if a <= index < b), None)
                found.append(Place(call.operation.name, tensor, index + 1, split))
    return [place for place in found if place.tensor is not model.outputs[0]]


def _can_be_kept(tensor: keras.KerasTensor) -> bool:
    """Whether a step can hand on a tensor: float32 `[batch, ...]` of a known shape."""
    batch, *shape = tensor.shape
    return batch is None and None not in shape and tensor.dtype == "float32"


def _spans_of_weights(calls: Sequence[graph.LayerCall]) -> list[tuple[str, int, int]]:
    """Name, first and last call of each layer with weights."""
    spans: dict[int, tuple[str, int, int]] = {}
    for index, call in enumerate(calls):
        operation = call.operation
        if graph.has_weights(operation):
            _, first, _ = spans.get(id(operation), (operation.name, index, index))
            spans[id(operation)] = operation.name, first, index
    return list(spans.values())


def at(model: keras.Model, names: Sequence[str]) -> list[Place]:
    """The places of some layers.

    Raises:
      InputError: for a layer at which the model cannot be cut, a layer shared between
        blocks, or names that are not in the model's order.
    """
    by_name = {place.name: place for place in places(model)}
    known = {operation.name for operation in model.operations}
    for name in names:
        if name not in known:
            raise InputError(f"cut_at must name layers of the model, got {name!r}")
        if name not in by_name:
            raise InputError(
                "a model is cut where a single activation is all that later layers read, "
                f"got {name!r}; it can be cut at {_some(list(by_name))}"
            )
        if by_name[name].split:
            raise InputError(
                f"a layer with weights must be called in one block only, got "
                f"{by_name[name].split!r} on both sides of {name!r}"
            )
    chosen = [by_name[name] for name in names]
    if any(a.position >= b.position for a, b in itertools.pairwise(chosen)):
        raise InputError(
            f"cut_at must name different layers in the model's order, got {', '.join(names)}"
        )
    return chosen


def _some(names: Sequence[str]) -> str:
    if not names:
        return "no layer"
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])}, ... {names[-1]}"


def choose(model: keras.Model, blocks: int) -> list[Place]:
    """The places that cut a model in blocks of about equal multiply-adds.

    Small activations are preferred, as they are what a step keeps for the next one. Each
    block has weights.

    Raises:
      InputError: if the model cannot be cut often enough, or a layer cannot be counted.
    """
    calls = graph.calls(model)
    candidates = [place for place in places(model) if not place.split]
    costs = _running_costs(calls)
    weights = _running_weights(calls)
    ends = [0, *(place.position for place in candidates), len(calls)]
    mean = costs[-1] / blocks or 1.0
    largest = max((place.numbers for place in candidates), default=1)
    # Least penalty of so many blocks up to each end, and minus where the block before ends:
    # of equal places the last one, so that norms and activations are not computed again.
    least: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for block in range(1, blocks + 1):
        row: dict[int, tuple[float, int]] = {}
        last = len(ends) - 1
        for end in [last] if block == blocks else range(1, last):
            keep = 0.0 if end == last else candidates[end - 1].numbers / largest
            for start, (penalty, _) in least[-1].items():
                if start >= end or weights[ends[start]] == weights[ends[end]]:
                    continue
                cost = costs[ends[end]] - costs[ends[start]]
                total = penalty + (cost / mean - 1) ** 2 + _ACTIVATION_PENALTY * keep
                row[end] = min(row.get(end, (math.inf, 0)), (total, -start))
        least.append(row)
    if not least[-1]:
        raise InputError(
            f"the model must have {blocks - 1} places to cut it in {blocks} blocks with weights, "
            f"got {len(candidates)}: {_some([place.name for place in candidates])}"
        )
    return _traced(candidates, least)


def _traced(
    candidates: Sequence[Place], least: Sequence[dict[int, tuple[float, int]]]
) -> list[Place]:
    """The candidates that the least penalty goes through."""
    chosen: list[Place] = []
    (end,) = least[-1]
    for row in reversed(least[2:]):
        end = -row[end][1]
        chosen.insert(0, candidates[end - 1])
    return chosen


def _running_costs(calls: Sequence[graph.LayerCall]) -> list[int]:
    """Multiply-adds of the first n calls, from 0."""
    return list(itertools.accumulate(map(multiply_adds.of_call, calls), initial=0))


def _running_weights(calls: Sequence[graph.LayerCall]) -> list[int]:
    """Calls with weights among the first n, from 0."""
    counts = (graph.has_weights(call.operation) for call in calls)
    return list(itertools.accumulate(counts, initial=0))
