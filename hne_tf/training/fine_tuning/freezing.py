"""Layers that a run leaves as they are: for its first steps, or to its end."""

import math
from collections.abc import Collection, Sequence

import keras
import ml_collections

from hne_tf.errors import InputError
from hne_tf.models.ensemble import Ensemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.nodes import node_name
from hne_tf.training.schedule import Schedule


class Freezing:
    """Which layers of a model are trained at which step.

    A frozen layer has no gradient, and its batch norms use their moving statistics, as Keras's
    own with `trainable=False`. Layers that the model's author froze stay so.

    Args:
      model: of blocks; its layers are changed by `apply` only.
      thawed_at: for each block, the first step that trains it; `math.inf` for none.
      norms: whether batch norms are frozen in all blocks to the end.
      nodes: names of the nodes that are trained, such as `"block2.node1"`; all of them
        if it is empty.

    Raises:
      InputError: unless each block has a step, for a node that there is not, or nodes of
        a grouped model, which are computed together.
    """

    def __init__(
        self,
        model: Ensemble,
        thawed_at: Sequence[float],
        norms: bool = False,
        nodes: Collection[str] = (),
    ) -> None:
        if len(thawed_at) != model.tree.blocks:
            raise InputError(
                f"there must be a step for each of the {model.tree.blocks} blocks, got {thawed_at}"
            )
        self._thawed_at = tuple(thawed_at)
        self._norms = norms
        _check_nodes(model, nodes)
        # With what they are by themselves. Layers come before those inside them, which would
        # otherwise become what these are.
        self._layers = [
            (places[0][0], layer, layer.trainable and _is_chosen(places, nodes))
            for places, network in model.networks
            # Keras has no public view of layers inside layers.
            for layer in network._flatten_layers(include_self=False)
        ]
        # Blocks that are trained, once that is set.
        self._trained: tuple[bool, ...] = ()

    def apply(self, step: int) -> bool:
        """Makes layers trainable, or not, for the steps from `step` to `next_change`.

        Returns:
          Whether other layers are trainable than before; graphs are to be traced anew.
        """
        trained = tuple(step >= thawed_at for thawed_at in self._thawed_at)
        if trained == self._trained:
            return False
        self._trained = trained
        for block, layer, trainable in self._layers:
            is_frozen_norm = self._norms and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = trainable and trained[block] and not is_frozen_norm
        return True

    def next_change(self, step: int) -> float:
        """The first step after `step` that trains other layers; `math.inf` if there is none."""
        return min((each for each in self._thawed_at if each > step), default=math.inf)


def _is_chosen(places: Sequence[tuple[int, int]], nodes: Collection[str]) -> bool:
    return not nodes or any(node_name(place) in nodes for place in places)


def _check_nodes(model: Ensemble, nodes: Collection[str]) -> None:
    if not nodes:
        return
    if isinstance(model, GroupedEnsemble):
        raise InputError(
            "training.factory must be branched for optimizer.trained_nodes, got grouped, which "
            "computes all nodes of a block at once"
        )
    known = [node_name(place) for places, _ in model.networks for place in places]
    for name in nodes:
        if name not in known:
            raise InputError(
                f"optimizer.trained_nodes must be of {known[0]} to {known[-1]}, got {name!r}"
            )


def of(config: ml_collections.ConfigDict, model: Ensemble, schedule: Schedule) -> Freezing:
    """What the optimiser section freezes of a model.

    Raises:
      InputError: for settings that are not one for each block, or out of range.
    """
    section, blocks = config.optimizer, model.tree.blocks
    rates = block_rates(config, blocks)
    epochs = per_block("frozen_epochs", section.frozen_epochs, blocks, default=0.0)
    for value in epochs:
        if not 0 <= value < math.inf:
            raise InputError(f"optimizer.frozen_epochs must be 0 or more, got {value}")
    steps = [round(value * schedule.steps_per_epoch) for value in epochs]
    thawed_at = [step if rate else math.inf for step, rate in zip(steps, rates, strict=True)]
    if min(thawed_at) > 0:
        raise InputError(
            "optimizer.block_rates and frozen_epochs must leave a block to train from the "
            f"beginning, got {section.block_rates} and {section.frozen_epochs}"
        )
    frozen = Freezing(model, thawed_at, section.frozen_norms, section.trained_nodes)
    _check_trained(model, thawed_at, section.trained_nodes)
    return frozen


def _check_trained(model: Ensemble, thawed_at: Sequence[float], nodes: Collection[str]) -> None:
    """Raises `InputError` unless all nodes to train are trained, one from the beginning."""
    steps = {
        node_name(place): thawed_at[place[0]] for places, _ in model.networks for place in places
    }
    for name in nodes:
        if steps[name] == math.inf:
            raise InputError(
                "optimizer.trained_nodes must be of blocks with a rate above 0 in "
                f"optimizer.block_rates, got {name!r}"
            )
    if nodes and min(steps[name] for name in nodes) > 0:
        raise InputError(
            "optimizer.frozen_epochs must leave one of optimizer.trained_nodes to train from the "
            f"beginning, got {tuple(nodes)}"
        )


def block_rates(config: ml_collections.ConfigDict, blocks: int) -> tuple[float, ...]:
    """The learning rate of each block as a part of the run's; 0 for a frozen one.

    Raises:
      InputError: unless there is a rate of 0 or more for each block.
    """
    rates = per_block("block_rates", config.optimizer.block_rates, blocks, default=1.0)
    for rate in rates:
        if not 0 <= rate < math.inf:
            raise InputError(f"optimizer.block_rates must be 0 or more, got {rate}")
    return rates


def per_block(name: str, values: Sequence[float], blocks: int, default: float) -> tuple[float, ...]:
    """A setting of each block, which is the default for all if there is none.

    Raises:
      InputError: unless there are none, or a number for each block.
    """
    if values and len(values) != blocks:
        raise InputError(
            f"optimizer.{name} must have a number for each of the {blocks} blocks, got {values}"
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InputError(f"optimizer.{name} must be numbers, got {value!r}")
    return tuple(values) or (default,) * blocks
