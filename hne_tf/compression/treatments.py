"""What TFMOT does to a flat model while it is fine-tuned: quantisation, pruning, clustering.

Each treatment wraps the model's layers, is trained with `fine_tuning`, and is
taken off again. TFMOT: https://www.tensorflow.org/model_optimization.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from hne_tf.compression import flat
from hne_tf.errors import extra
from hne_tf.export.post_training import quantized_kernels
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.quantized import quantize, quantize_depthwise_kernel, quantize_kernel

with extra("compress"):
    import tensorflow_model_optimization as tfmot
    import tf_keras

# Of the moving average of ranges, TFMOT's.
_RANGE_DECAY = 0.999
# Pruning ends after this part of the steps; the rest heals what it did.
_PRUNING_PART = 2 / 3
_PRUNING_UPDATES = 100
# Mask and weights that TFMOT's own wrapper prunes in two of every four inputs.
STRUCTURES = {"2:4": (2, 4)}

_WEIGHTED = (tf_keras.layers.Conv2D, tf_keras.layers.DepthwiseConv2D, tf_keras.layers.Dense)


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A wrapped model, ready to be fine-tuned.

    Attributes:
      model: images to leaf logits, in `tf_keras`.
      treated: canonical names of the kernels that TFMOT works on.
      strip: the canonical weights of the model without its wrappers.
    """

    model: tf_keras.Model
    treated: frozenset[str]
    strip: Callable[[], dict[str, np.ndarray]]


def prune(
    model: tf_keras.Model, steps: int, sparsity: float = 0.5, structure: str = ""
) -> Treatment:
    """Magnitude pruning: the smallest weights of each kernel become 0, more of them at each step.

    Zhu and Gupta, "To prune, or not to prune", arXiv 1710.01878, 2017: the
    sparsity grows as `s (1 - (1 - t)^3)` over the first two thirds of the steps.

    Args:
      model: a flat model.
      steps: of the fine-tuning, 1 or more.
      sparsity: share of zeros in the end, in (0, 1).
      structure: `"2:4"` instead: two zeros at least in every four consecutive
        input channels, from the first steps on.

    Returns:
      The treatment. Its pruning is part of the model's training calls.
    """
    end = max(1, int(steps * _PRUNING_PART))
    frequency = max(1, end // _PRUNING_UPDATES)
    # Ends on an update, or the last one would stay short of the sparsity.
    end -= end % frequency
    if structure:
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, 0, end, frequency)
    else:
        schedule = tfmot.sparsity.keras.PolynomialDecay(
            0.0, sparsity, 0, end, power=3, frequency=frequency
        )

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if not isinstance(layer, _WEIGHTED):
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(
            layer, pruning_schedule=schedule, sparsity_m_by_n=STRUCTURES.get(structure)
        )

    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    update = tfmot.sparsity.keras.UpdatePruningStep()
    update.set_model(wrapped)
    update.on_train_begin()

    def strip() -> dict[str, np.ndarray]:
        # Masks what the last step has moved.
        update.on_epoch_end(batch=None)
        return flat.read(tfmot.sparsity.keras.strip_pruning(wrapped))

    return Treatment(wrapped, _treated(wrapped, "pruning_vars"), strip)


def cluster(model: tf_keras.Model, clusters: int) -> Treatment:
    """Weight clustering: each kernel has at most `clusters` distinct values, which are trained.

    Han et al., "Deep Compression", ICLR 2016. A kernel with no more weights
    than that is left as it is.

    Args:
      model: a flat model.
      clusters: 2 or more.
    """
    keras_api = tfmot.clustering.keras

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if not isinstance(layer, _WEIGHTED) or tf.size(layer.weights[0]) <= clusters:
            return layer
        return keras_api.cluster_weights(
            layer,
            number_of_clusters=clusters,
            cluster_centroids_init=keras_api.CentroidInitialization.KMEANS_PLUS_PLUS,
        )

    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    treated = _treated(wrapped, "cluster_centroids")
    return Treatment(wrapped, treated, lambda: flat.read(keras_api.strip_clustering(wrapped)))


def _treated(model: tf_keras.Model, attribute: str) -> frozenset[str]:
    """Kernels for which TFMOT's wrapper keeps something: it wraps depthwise layers in vain."""
    units = {
        f"{layer.layer.name.replace('.', '/')}/"
        for layer in model.layers
        if getattr(layer, attribute, None)
    }
    return frozenset(
        name
        for name in flat.variables(model)
        if name.endswith("kernel") and any(name.startswith(unit) for unit in units)
    )


def train_quantized(model: tf_keras.Model, quantized: TreeEnsemble) -> Treatment:
    """Quantisation-aware training: the model computes as `QuantizedLayers` do.

    Jacob et al., CVPR 2018: rounding in the forward pass, none in the backward
    pass. Ranges follow those of the batches by a moving average.

    Args:
      model: a flat model.
      quantized: the same model with the ranges to start from, see `post_training`.
    """
    values = weights.read(quantized)
    inherited = _inherited_ranges(quantized)

    def annotate(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        unit = layer.name.replace(".", "/")
        if f"{unit}/range/min" not in values or unit in inherited:
            return layer
        config = UnitQuantization(
            float(values[f"{unit}/range/min"]), float(values[f"{unit}/range/max"])
        )
        return tfmot.quantization.keras.quantize_annotate_layer(layer, config)

    with tfmot.quantization.keras.quantize_scope({"UnitQuantization": UnitQuantization}):
        annotated = tf_keras.models.clone_model(model, clone_function=annotate)
        wrapped = tfmot.quantization.keras.quantize_apply(annotated, _AsAnnotated())

    def strip() -> dict[str, np.ndarray]:
        trained = flat.read(wrapped)
        for unit, source in inherited.items():
            for end in ("min", "max"):
                trained[f"{unit}/range/{end}"] = trained[f"{source}/range/{end}"]
        return trained

    return Treatment(wrapped, quantized_kernels(quantized), strip)


def _inherited_ranges(quantized: TreeEnsemble) -> dict[str, str]:
    """For the entry of each node but the roots, the unit that it takes its range from.

    What comes in has been rounded when it left the parent. One range for both
    keeps them the same integers.
    """
    tree, nodes = quantized.tree, quantized.node_models
    inherited = {}
    for block, node in tree.nodes_of(range(tree.leaves)):
        if block == 0:
            continue
        parent = nodes[block - 1][tree.parent(block, node)]
        several = isinstance(parent.output, list)
        layers = {layer.name for layer in nodes[block][node].layers}
        for index, output in enumerate(parent.outputs):
            entry = f"entry{index}" if several else "entry"
            # A node may leave some of its parent's features alone, as an exit does.
            if f"{entry}.range" in layers:
                unit = output._keras_history.operation.name.removesuffix(".range")
                source = f"{parent.name}.{unit}".replace(".", "/")
                inherited[f"block{block}/node{node}/{entry}"] = source
    return inherited


class UnitQuantization(tfmot.quantization.keras.QuantizeConfig):
    """How TFMOT quantises a layer: its kernel if it has one, and its output to a range.

    Args:
      minimum: of the range at the start.
      maximum: likewise.
    """

    def __init__(self, minimum: float, maximum: float) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def get_weights_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[tuple[Any, Any]]:
        name = _kernel_name(layer)
        return [(getattr(layer, name), _KernelQuantizer(name))] if name else []

    def set_quantize_weights(
        self, layer: tf_keras.layers.Layer, quantize_weights: list[tf.Tensor]
    ) -> None:
        for kernel in quantize_weights:
            setattr(layer, _kernel_name(layer), kernel)

    def get_activations_and_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        return []

    def set_quantize_activations(
        self, layer: tf_keras.layers.Layer, quantize_activations: list[Any]
    ) -> None:
        # The output is rounded after the activation.
        del layer, quantize_activations

    def get_output_quantizers(self, layer: tf_keras.layers.Layer) -> list[Any]:
        return [_RangeQuantizer(self._minimum, self._maximum)]

    def get_config(self) -> dict[str, float]:
        return {"minimum": self._minimum, "maximum": self._maximum}


def _kernel_name(layer: tf_keras.layers.Layer) -> str:
    """Attribute of a layer's kernel, empty if it has none."""
    if isinstance(layer, tf_keras.layers.DepthwiseConv2D):
        return "depthwise_kernel"
    return "kernel" if isinstance(layer, tf_keras.layers.Conv2D) else ""


class _KernelQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds the kernel called `name` per output channel."""

    def __init__(self, name: str) -> None:
        self._name = name

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        return {}

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        rounded = quantize_kernel if self._name == "kernel" else quantize_depthwise_kernel
        return rounded(tf.convert_to_tensor(inputs))

    def get_config(self) -> dict[str, str]:
        return {"name": self._name}


class _RangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Rounds to a range that follows the batches' by a moving average in training."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self._minimum = minimum
        self._maximum = maximum

    def build(self, tensor_shape: Any, name: str, layer: tf_keras.layers.Layer) -> dict[str, Any]:
        return {
            variable: layer.add_weight(
                variable,
                shape=(),
                initializer=tf_keras.initializers.Constant(value),
                trainable=False,
            )
            for variable, value in (
                (flat.RANGE_MIN, self._minimum),
                (flat.RANGE_MAX, self._maximum),
            )
        }

    def __call__(self, inputs: Any, training: Any, weights: dict[str, Any], **kwargs: Any) -> Any:
        minimum, maximum = weights[flat.RANGE_MIN], weights[flat.RANGE_MAX]
        if training:
            seen = tf.minimum(tf.reduce_min(inputs), 0.0), tf.maximum(tf.reduce_max(inputs), 0.0)
            for variable, value in zip((minimum, maximum), seen, strict=True):
                variable.assign_add((1 - _RANGE_DECAY) * (value - variable))
        return quantize(inputs, tf.convert_to_tensor(minimum), tf.convert_to_tensor(maximum))

    def get_config(self) -> dict[str, float]:
        return {"minimum": self._minimum, "maximum": self._maximum}


class _AsAnnotated(tfmot.quantization.keras.QuantizeScheme):
    """Quantises what is annotated, and changes nothing else of the graph."""

    def get_layout_transformer(self) -> "_UnchangedLayout":
        return _UnchangedLayout()

    def get_quantize_registry(self) -> "_EmptyRegistry":
        return _EmptyRegistry()


class _UnchangedLayout(tfmot.quantization.keras.QuantizeLayoutTransform):
    def apply(self, model: tf_keras.Model, layer_quantize_map: dict[str, Any]) -> tuple[Any, Any]:
        return model, layer_quantize_map


class _EmptyRegistry(tfmot.quantization.keras.QuantizeRegistry):
    def supports(self, layer: tf_keras.layers.Layer) -> bool:
        return False

    def get_quantize_config(self, layer: tf_keras.layers.Layer) -> None:
        return None
