"""What every Keras 3 factory has: layers without weights, and its settings."""

import dataclasses
from typing import Any

import keras
from keras import KerasTensor

# Stated by every layer, so that the user's Keras configuration changes no network.
DATA_FORMAT = "channels_last"


class PlainLayers:
    """Entries of nodes, sums, concatenations, averages and activations.

    Subclasses are frozen dataclasses of plain settings, registered with Keras.
    """

    def get_config(self) -> dict[str, Any]:
        """The settings, which `from_config` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PlainLayers":
        """The factory of some settings."""
        return cls(**config)

    @property
    def _policy(self) -> str:
        """Keras's name for the type of activations and weights."""
        return "float32"

    def entry(self, x: KerasTensor, name: str) -> KerasTensor:
        del name
        return x

    def branch(self, x: KerasTensor, name: str, share: float) -> KerasTensor:
        del name, share
        return x

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        x = keras.layers.Add(dtype=self._policy, name=name)(inputs)
        return self._activate(x, name, activation)

    def apart(self, x: KerasTensor, name: str) -> KerasTensor:
        """A term of a sum in layers that no factory builds, as the sum reads it."""
        del name
        return x

    def concat(self, inputs: list[KerasTensor], name: str) -> KerasTensor:
        return keras.layers.Concatenate(axis=-1, dtype=self._policy, name=name)(inputs)

    def pool(self, x: KerasTensor, name: str) -> KerasTensor:
        return keras.layers.GlobalAveragePooling2D(
            data_format=DATA_FORMAT, dtype="float32", name=name
        )(x)

    def _activate(self, x: KerasTensor, name: str, activation: str | None) -> KerasTensor:
        return keras.layers.Activation(activation, dtype=self._policy, name=f"{name}.activation")(x)
