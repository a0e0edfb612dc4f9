"""Batch norm folded into the convolution before it."""

import numpy as np

from hne_tf.models import weights as canonical
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.functional import norms
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import NORM_EPSILON, TrainingLayers
from hne_tf.models.weights import CanonicalWeights

_NORM = "/norm/gamma"


def deployed(model: TreeEnsemble) -> TreeEnsemble:
    """The model in the deploy factory's form, its batch norms folded.

    A compressed model has that form, or the one of `QuantizedLayers`, already; a
    network that cannot be folded stays as it is.
    """
    architecture = model.architecture
    if not isinstance(model.factory, TrainingLayers) or not architecture.foldable:
        return model
    folded = TreeEnsemble(
        architecture.folded(), model.tree, model.images, DeployLayers(), model.average, model.name
    )
    if architecture.brings_layers:
        for (_, target), (_, source) in zip(folded.networks, model.networks, strict=True):
            norms.load(target, source, architecture.norms)
    else:
        canonical.load(folded, fold(canonical.read(model)))
    return folded


def fold(weights: CanonicalWeights) -> dict[str, np.ndarray]:
    """Turns the training factory's weights into the deploy factory's.

    A convolution `k * x` followed by `gamma (y - mean) / sqrt(variance + eps) +
    beta` is one with kernel `k s` and bias `beta - mean s`, where `s = gamma /
    sqrt(variance + eps)` per output channel.

    Args:
      weights: canonical weights with a batch norm per convolution.

    Returns:
      Canonical weights with a bias per convolution, all else as it was.
    """
    units = [name.removesuffix(_NORM) for name in weights if name.endswith(_NORM)]
    folded = {name: value for name, value in weights.items() if "/norm/" not in name}
    for unit in units:
        gamma, beta, mean, variance = (
            weights[f"{unit}/norm/{name}"].astype(np.float64)
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        scale = gamma / np.sqrt(variance + NORM_EPSILON)
        if f"{unit}/kernel" in weights:
            kernel, per_channel = f"{unit}/kernel", scale
        else:
            # A depthwise kernel is [height, width, channels, 1].
            kernel, per_channel = f"{unit}/depthwise_kernel", scale[:, None]
        folded[kernel] = (weights[kernel] * per_channel).astype(np.float32)
        folded[f"{unit}/bias"] = (beta - mean * scale).astype(np.float32)
    return folded
