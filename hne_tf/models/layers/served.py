"""The deploy factory for a graph that answers several requests at a time.

TensorFlow's graph optimiser makes one oneDNN kernel of a convolution, its bias and a sum. The
kernel adds in place; where others read the shortcut too, as at every branching of a tree, it first
copies it, and keeps the copy's source and destination in fields that concurrent calls share
(`fuse_add_src_` and `fuse_add_dst_` of `mkl_conv_ops.cc`, TensorFlow 2.21). An answer then holds
activations of another request, or the process ends. The sums here are never fused, which takes no
longer. Needs TensorFlow.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf
from keras import KerasTensor

from hne_tf.models.layers.deploy import DeployLayers


@keras.saving.register_keras_serializable("hne_tf")
class Opaque(keras.layers.Layer):
    """Passes a tensor of any shape on, through an op that the graph optimiser keeps."""

    def call(self, inputs: Any) -> Any:
        return tf.ensure_shape(inputs, inputs.shape)


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class ServedLayers(DeployLayers):
    """`DeployLayers` whose sums stay apart from the convolutions, with the same results."""

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        apart = [self.apart(x, f"{name}.input{index}") for index, x in enumerate(inputs)]
        return super().add(apart, name, activation)

    def apart(self, x: KerasTensor, name: str) -> KerasTensor:
        return Opaque(dtype=self._policy, name=name)(x)
