"""The layer factory that trained networks answer with."""

import dataclasses
from typing import Any

import keras
from keras import KerasTensor

from hne_tf.models.layers.factory import Convolution
from hne_tf.models.layers.plain import DATA_FORMAT, PlainLayers


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class DeployLayers(PlainLayers):
    """Convolution with a bias and activation: what batch norm folds into for inference."""

    def conv(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        convolve, depthwise = self._layers
        options: dict[str, Any] = {
            "strides": convolution.strides,
            "padding": "same",
            "data_format": DATA_FORMAT,
            "dtype": self._policy,
            "activation": convolution.activation,
            "name": name,
        }
        if convolution.is_depthwise:
            return depthwise(convolution.kernel_size, **options)(x)
        return convolve(convolution.filters, convolution.kernel_size, **options)(x)

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        return keras.layers.Dense(classes, dtype=self._policy, name=name)(x)

    @property
    def _layers(self) -> tuple[type[keras.layers.Conv2D], type[keras.layers.DepthwiseConv2D]]:
        """The layers of a convolution and of a depthwise one."""
        return keras.layers.Conv2D, keras.layers.DepthwiseConv2D
