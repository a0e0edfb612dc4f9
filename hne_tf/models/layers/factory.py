"""Layer factories: what a convolution becomes is decided here, not in the blocks.

Blocks are written once against `LayerFactory`. A convolution comes with its
normalisation and activation as one unit, named by its place in the block, e.g.
`"unit0.conv1"`. Dots in layer names become slashes in canonical weight names
(`models/weights.py`), so every factory's weights load into every other's.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import keras
from keras import KerasTensor

from hne_tf.errors import InputError

# Shared with folding, which needs it to turn a batch norm into a bias.
NORM_EPSILON = 1e-3

# Keras's names of what layers compute in; variables are float32 in both.
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


# Floats in a vector of AVX2.
LEAST_CHANNELS = 8


def subsampled(x: Any, kernel_size: int, strides: int) -> tuple[Any, int]:
    """What a convolution without padding reads of its input, and the strides that are left.

    A strided 1x1 convolution sees every n-th pixel. With fewer than `LEAST_CHANNELS`
    input channels these are taken out first: on a CPU with AVX2, TensorFlow's oneDNN
    kernel for the gradient of its weights otherwise writes past its buffer, which gives
    wrong gradients or ends the process (TensorFlow 2.21).

    Args:
      x: `[batch, height, width, ..., channels]`.
      kernel_size: height and width of the kernel.
      strides: in height and width.
    """
    if kernel_size == 1 and strides > 1 and x.shape[-1] < LEAST_CHANNELS:
        return x[:, ::strides, ::strides], 1
    return x, strides


class LayerFactory(Protocol):
    """Layers that a block is written in; activations are `[batch, height, width, channels]`."""

    def entry(self, x: KerasTensor, name: str) -> KerasTensor:
        """What comes into a node: its parent's activation, or the normalised images."""

    def conv(
        self,
        x: KerasTensor,
        name: str,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        activation: str | None = "relu",
        zero_gamma: bool = False,
    ) -> KerasTensor:
        """Convolution, normalisation and activation; `zero_gamma` starts it at zero output."""

    def depthwise(
        self,
        x: KerasTensor,
        name: str,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str | None = "relu",
    ) -> KerasTensor:
        """Depthwise convolution, normalisation and activation."""

    def add(
        self, inputs: list[KerasTensor], name: str, activation: str | None = None
    ) -> KerasTensor:
        """Sum of activations of equal shape, then the activation."""

    def concat(self, inputs: list[KerasTensor], name: str) -> KerasTensor:
        """Activations side by side on channels."""

    def pool(self, x: KerasTensor, name: str) -> KerasTensor:
        """Global average: `[batch, height, width, channels]` to `[batch, channels]`."""

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        """Linear classifier: `[batch, channels]` to logits `[batch, classes]`."""


class _KerasLayers:
    """The layers without weights, the same in every Keras 3 factory."""

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


@dataclasses.dataclass(frozen=True)
class TrainingLayers(_KerasLayers):
    """Convolution without bias, batch normalisation, activation; a layer each.

    Kernels start from He et al. (ICCV 2015) and carry the coupled L2 penalty
    `weight_decay / 2 * |kernel|^2`, whose gradient is `weight_decay * kernel`;
    batch norms and biases carry none.

    Attributes:
      weight_decay: coefficient of the penalty's gradient, 0 for none.
      norm_momentum: share of the moving statistics kept at each step.
      synchronized: whether batch statistics are taken over all replicas.
      precision: `"float32"`, or `"bfloat16"` for the activations of blocks and what
        kernels are rounded to there; weights, statistics, pooling and classifiers
        stay in float32.
      batch_normalization: Keras's layer, or one that computes the same.

    Raises:
      InputError: for a negative weight decay, a momentum outside (0, 1) or an
        unknown precision.
    """

    weight_decay: float = 0.0
    norm_momentum: float = 0.9
    synchronized: bool = False
    precision: str = "float32"
    batch_normalization: ClassVar[type[keras.layers.BatchNormalization]] = (
        keras.layers.BatchNormalization
    )

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 < self.norm_momentum < 1:
            raise InputError(f"norm_momentum must lie between 0 and 1, got {self.norm_momentum}")
        if self.precision not in _POLICIES:
            raise InputError(
                f"precision must be one of {', '.join(_POLICIES)}, got {self.precision!r}"
            )

    @property
    def _policy(self) -> str:
        return _POLICIES[self.precision]

    def conv(
        self,
        x: KerasTensor,
        name: str,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        activation: str | None = "relu",
        zero_gamma: bool = False,
    ) -> KerasTensor:
        x, strides = subsampled(x, kernel_size, strides)
        x = keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=self._penalty(),
            dtype=self._policy,
            name=name,
        )(x)
        return self._normalise(x, name, activation, zero_gamma)

    def depthwise(
        self,
        x: KerasTensor,
        name: str,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str | None = "relu",
    ) -> KerasTensor:
        x = keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            # Keras counts a depthwise kernel's fan-in over all channels; each
            # output here sees only kernel_size^2 inputs.
            depthwise_initializer=keras.initializers.RandomNormal(
                stddev=(2.0 / kernel_size**2) ** 0.5
            ),
            depthwise_regularizer=self._penalty(),
            dtype=self._policy,
            name=name,
        )(x)
        return self._normalise(x, name, activation, zero_gamma=False)

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        return keras.layers.Dense(
            classes,
            kernel_initializer="he_normal",
            kernel_regularizer=self._penalty(),
            dtype="float32",
            name=name,
        )(x)

    def _penalty(self) -> keras.regularizers.L2 | None:
        return keras.regularizers.L2(self.weight_decay / 2) if self.weight_decay else None

    def _normalise(
        self, x: KerasTensor, name: str, activation: str | None, zero_gamma: bool
    ) -> KerasTensor:
        x = self.batch_normalization(
            momentum=self.norm_momentum,
            epsilon=NORM_EPSILON,
            gamma_initializer="zeros" if zero_gamma else "ones",
            synchronized=self.synchronized,
            dtype=self._policy,
            name=f"{name}.norm",
        )(x)
        return self._activate(x, name, activation)


@dataclasses.dataclass(frozen=True)
class DeployLayers(_KerasLayers):
    """Convolution with a bias and activation: what batch norm folds into for inference."""

    def conv(
        self,
        x: KerasTensor,
        name: str,
        filters: int,
        kernel_size: int = 1,
        strides: int = 1,
        activation: str | None = "relu",
        zero_gamma: bool = False,
    ) -> KerasTensor:
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            activation=activation,
            name=name,
        )(x)

    def depthwise(
        self,
        x: KerasTensor,
        name: str,
        kernel_size: int = 3,
        strides: int = 1,
        activation: str | None = "relu",
    ) -> KerasTensor:
        return keras.layers.DepthwiseConv2D(
            kernel_size,
            strides=strides,
            padding="same",
            activation=activation,
            name=name,
        )(x)

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        return keras.layers.Dense(classes, name=name)(x)
