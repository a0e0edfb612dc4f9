"""Blocks that learn at rates of their own."""

from collections.abc import Sequence
from typing import Any

import keras

from hne_tf.models.ensemble import Ensemble


def set_block_rates(optimizer: keras.Optimizer, model: Ensemble, rates: Sequence[float]) -> None:
    """Lets an optimiser update the weights of each block at a part of its learning rate.

    The decay of weights that AdamW takes apart from their update goes at the whole rate.

    Args:
      optimizer: built for the model's trainable weights.
      model: of blocks.
      rates: for each block, factor of the learning rate.
    """
    if set(rates) == {1.0}:
        return
    block_of = {
        id(variable): places[0][0]
        for places, network in model.networks
        for variable in network.weights
    }
    factors = [rates[block_of[id(variable)]] for variable in model.trainable_variables]
    update = optimizer.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        # Replicas have variables of their own, which the optimiser knows by their places.
        factor = factors[optimizer._get_variable_index(variable)]
        update(gradient, variable, learning_rate * factor)

    optimizer.update_step = update_step
