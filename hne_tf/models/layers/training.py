"""The layer factory that networks are trained with."""

import dataclasses
from typing import Any, ClassVar

import keras
from keras import KerasTensor, ops

from hne_tf.errors import InputError
from hne_tf.models.layers.factory import LEAST_CHANNELS, Convolution, subsampled
from hne_tf.models.layers.plain import DATA_FORMAT, PlainLayers
from hne_tf.models.layers.shifted import ShiftedDepthwiseConv2D

# Shared with folding, which needs it to turn a batch norm into a bias.
NORM_EPSILON = 1e-3

BRANCH_GRADIENTS = ("sum", "mean")

# Keras's names of what layers compute in; variables are float32 in both.
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


@keras.saving.register_keras_serializable("hne_tf")
class SubsampledConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that reads what it needs of its input, see `factory.subsampled`.

    It does so itself: a layer before it would change the places of layers in checkpoints.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        pixels, strides = subsampled(inputs, self.kernel_size[0], self.strides[0])
        return ops.conv(pixels, kernel, strides, self.padding, data_format=self.data_format)


@keras.saving.register_keras_serializable("hne_tf")
class ScaledGradient(keras.layers.Layer):
    """Passes a tensor on, and its gradient times `scale`."""

    def __init__(self, scale: float, **options: Any) -> None:
        super().__init__(**options)
        self.scale = scale

    def call(self, inputs: Any) -> Any:
        constant = ops.stop_gradient(inputs)
        # The difference is zero.
        return constant + self.scale * (inputs - constant)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable("hne_tf")
@dataclasses.dataclass(frozen=True)
class TrainingLayers(PlainLayers):
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
      shifted: whether depthwise convolutions are sums of shifted products, for XLA; see
        `shifted.py`.
      branch_gradients: of what several leaves read, the `"sum"` of their gradients or the
        `"mean"` (Li et al., "Improved Techniques for Training Adaptive Deep Networks", ICCV
        2019), by which nodes learn at the same pace whatever the number of leaves below.
      batch_normalization: Keras's layer, or one that computes the same.

    Raises:
      InputError: for a negative weight decay, a momentum outside (0, 1), an unknown
        precision or unknown gradients.
    """

    weight_decay: float = 0.0
    norm_momentum: float = 0.9
    synchronized: bool = False
    precision: str = "float32"
    shifted: bool = False
    branch_gradients: str = "sum"
    batch_normalization: ClassVar[type[keras.layers.BatchNormalization]] = (
        keras.layers.BatchNormalization
    )
    l2: ClassVar[type[keras.regularizers.L2]] = keras.regularizers.L2

    def __post_init__(self) -> None:
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not 0 < self.norm_momentum < 1:
            raise InputError(f"norm_momentum must lie between 0 and 1, got {self.norm_momentum}")
        if self.precision not in _POLICIES:
            raise InputError(
                f"precision must be one of {', '.join(_POLICIES)}, got {self.precision!r}"
            )
        if self.branch_gradients not in BRANCH_GRADIENTS:
            raise InputError(
                f"branch_gradients must be one of {', '.join(BRANCH_GRADIENTS)}, "
                f"got {self.branch_gradients!r}"
            )

    @property
    def _policy(self) -> str:
        return _POLICIES[self.precision]

    def branch(self, x: KerasTensor, name: str, share: float) -> KerasTensor:
        if self.branch_gradients == "sum" or share == 1.0:
            return x
        return ScaledGradient(share, dtype=self._policy, name=name)(x)

    def conv(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        return self._normalise(self._convolve(x, name, convolution), name, convolution)

    def head(self, x: KerasTensor, name: str, classes: int) -> KerasTensor:
        return keras.layers.Dense(
            classes,
            kernel_initializer="he_normal",
            kernel_regularizer=self._penalty(),
            dtype="float32",
            name=name,
        )(x)

    def _convolve(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        """The convolution alone, without bias."""
        size = convolution.kernel_size
        options: dict[str, Any] = {
            "strides": convolution.strides,
            "padding": "same",
            "data_format": DATA_FORMAT,
            "use_bias": False,
            "dtype": self._policy,
            "name": name,
        }
        if convolution.is_depthwise:
            # Keras counts a depthwise kernel's fan-in over all channels; each
            # output here sees only kernel_size^2 inputs.
            initializer = keras.initializers.RandomNormal(stddev=(2.0 / size**2) ** 0.5)
            kind = ShiftedDepthwiseConv2D if self.shifted else keras.layers.DepthwiseConv2D
            return kind(
                size,
                depthwise_initializer=initializer,
                depthwise_regularizer=self._penalty(),
                **options,
            )(x)
        narrow = size == 1 and convolution.strides > 1 and x.shape[-1] < LEAST_CHANNELS
        kind = SubsampledConv2D if narrow else keras.layers.Conv2D
        return kind(
            convolution.filters,
            size,
            kernel_initializer="he_normal",
            kernel_regularizer=self._penalty(),
            **options,
        )(x)

    def _penalty(self) -> keras.regularizers.L2 | None:
        return self.l2(self.weight_decay / 2) if self.weight_decay else None

    def _normalise(self, x: KerasTensor, name: str, convolution: Convolution) -> KerasTensor:
        x = self.batch_normalization(
            momentum=self.norm_momentum,
            epsilon=NORM_EPSILON,
            gamma_initializer="zeros" if convolution.zero_gamma else "ones",
            synchronized=self.synchronized,
            dtype=self._policy,
            name=f"{name}.norm",
        )(x)
        return self._activate(x, name, convolution.activation)
