"""What compression did to a model's kernels, by kind of layer."""

from collections.abc import Set
from typing import Any

import keras
import numpy as np

from hne_tf.evaluation.tables import aligned
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.quantized import (
    QuantizedConv2D,
    QuantizedDepthwiseConv2D,
    quantize_depthwise_kernel,
    quantize_kernel,
)

# Depthwise first: which it is, is asked in this order.
_KINDS = {
    "depthwise": keras.layers.DepthwiseConv2D,
    "conv": keras.layers.Conv2D,
    "head": keras.layers.Dense,
}


def kernel_report(model: TreeEnsemble, treated: Set[str]) -> list[dict[str, Any]]:
    """Figures per kind of layer, of kernels as the model computes with them.

    Args:
      model: the compressed model.
      treated: canonical names of the kernels that the method worked on.

    Returns:
      A row per kind in the model (`conv`, `depthwise`, `head`): `kernels` and
      `treated`, how many there are and were treated; `parameters` of the
      kernels; `zeros`, their share; `distinct`, the most distinct values that
      one kernel has.
    """
    rows = {kind: [] for kind in ("conv", "depthwise", "head")}
    for row in model.node_models:
        for node in row:
            for layer in node.layers:
                kind = next((kind for kind, cls in _KINDS.items() if isinstance(layer, cls)), None)
                if kind:
                    name = weights.canonical_name(node.name, layer, layer.kernel)
                    rows[kind].append((name in treated, _effective(layer)))
    return [_row(kind, kernels) for kind, kernels in rows.items() if kernels]


def _effective(layer: keras.Layer) -> np.ndarray:
    """A layer's kernel as it computes with it."""
    kernel = keras.ops.convert_to_tensor(layer.kernel)
    if isinstance(layer, QuantizedConv2D):
        kernel = quantize_kernel(kernel)
    elif isinstance(layer, QuantizedDepthwiseConv2D):
        kernel = quantize_depthwise_kernel(kernel)
    return keras.ops.convert_to_numpy(kernel)


def _row(kind: str, kernels: list[tuple[bool, np.ndarray]]) -> dict[str, Any]:
    parameters = sum(kernel.size for _, kernel in kernels)
    return {
        "kind": kind,
        "kernels": len(kernels),
        "treated": sum(treated for treated, _ in kernels),
        "parameters": parameters,
        "zeros": sum(int(np.sum(kernel == 0)) for _, kernel in kernels) / parameters,
        "distinct": max(len(np.unique(kernel)) for _, kernel in kernels),
    }


def kernel_table(report: list[dict[str, Any]]) -> str:
    """The report as a Markdown table."""
    header = ["layers", "kernels", "treated", "parameters", "zeros", "most distinct values"]
    rows = [
        [
            row["kind"],
            str(row["kernels"]),
            str(row["treated"]),
            f"{row['parameters']:,}",
            f"{row['zeros']:.1%}",
            str(row["distinct"]),
        ]
        for row in report
    ]
    return aligned(header, rows, words={"layers"})


def accuracy_table(before: dict[str, float], after: dict[str, float]) -> str:
    """Accuracies by ensemble size as a Markdown table."""
    rows = [[size, f"{before[size]:.2%}", f"{after[size]:.2%}"] for size in before]
    return aligned(["size", "before", "after"], rows)
