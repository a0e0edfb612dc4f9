"""Quantisation without training: ranges are what representative images reach."""

from collections.abc import Iterable

import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.evaluation.evaluation import inference
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.quantized import QuantizedLayers


def post_training(model: TreeEnsemble, batches: Iterable[tf.Tensor]) -> TreeEnsemble:
    """Quantises a model to 8 bits.

    Every node of the tree sees every image, so the ranges serve every ensemble
    and every depth-first step alike: they share nodes, and a step's answer is
    the ensemble's.

    Args:
      model: in the deploy factory's form.
      batches: representative images, uint8 `[batch, height, width, channels]`,
        from the training split.

    Returns:
      The model in the form of `QuantizedLayers`. A range goes from the least
      to the greatest value that its unit gave for the images, and holds 0.

    Raises:
      InputError: if there is no batch, or the architecture is not `quantizable`.
    """
    if not model.architecture.quantizable:
        raise InputError(
            "only a quantizable architecture is rounded to 8 bits, got "
            f"{type(model.architecture).__name__}"
        )
    observed = model.rebuilt(QuantizedLayers(observe=True))
    targets = weights.variables(observed)
    for name, value in weights.read(model).items():
        targets[name].assign(value)
    observe = inference(observed)
    count = 0
    for images in batches:
        observe(images)
        count += 1
    if not count:
        raise InputError("quantisation needs representative images, got none")
    quantized = model.rebuilt(QuantizedLayers())
    weights.load(quantized, weights.read(observed))
    return quantized


def quantized_kernels(model: TreeEnsemble) -> frozenset[str]:
    """Canonical names of the kernels that a model in the form of `QuantizedLayers` rounds."""
    names = weights.variables(model).keys()
    return frozenset(
        name
        for name in names
        if name.endswith("kernel") and f"{name.rpartition('/')[0]}/range/min" in names
    )
