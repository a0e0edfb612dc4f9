"""The layers without weights, the same in every Keras 3 factory."""

import keras
from keras import KerasTensor


class PlainLayers:
    """What comes into a node, sums, concatenations, averages and activations."""

    @property
    def _policy(self) -> str:
        """Keras's name for the type of activations and weights."""
        return "float32"

    def entry(self, x: KerasTensor, name: str) -> KerasTensor:
        del name
        return x

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        x = keras.layers.Add(dtype=self._policy, name=name)(inputs)
        return self._activate(x, name, activation)

    def concat(self, inputs: list[KerasTensor], name: str) -> KerasTensor:
        return keras.layers.Concatenate(dtype=self._policy, name=name)(inputs)

    def pool(self, x: KerasTensor, name: str) -> KerasTensor:
        return keras.layers.GlobalAveragePooling2D(dtype="float32", name=name)(x)

    def _activate(self, x: KerasTensor, name: str, activation: str | None) -> KerasTensor:
        return keras.layers.Activation(activation, dtype=self._policy, name=f"{name}.activation")(x)
