"""What the page shows of a run, as JSON values."""

import base64
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from hne_tf import config as configs
from hne_tf import cost
from hne_tf.averaging import ensemble_log_probabilities
from hne_tf.errors import InputError
from hne_tf.export.manifest import read_manifest
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.trained import TrainedRun
from hne_tf.tree import Paths
from hne_tf.workdir import Workdir

# Figures per ensemble size that the page shows; an older evaluation lacks some.
_ROW = ("size", "accuracy", "nll", "ece", "brier", "disagreement", "variance", "gain")
_ROW += ("multiply_adds", "parameters", "reliability")


def read_evaluation(workdir: Workdir) -> dict[str, Any]:
    """What `hne-evaluate` measured on the test split.

    Raises:
      InputError: if it has not been run, or was of an older version.
    """
    path = workdir.evaluation_path("test")
    try:
        evaluation = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(
            f"a run must be evaluated first (hne-evaluate --workdir={workdir.path}), "
            f"got {workdir.path} without {path.name}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be readable JSON: {error}") from None
    missing = [figure for figure in _ROW if figure not in evaluation["sizes"][0]]
    if missing:
        raise InputError(
            f"{path} must have all figures (hne-evaluate --workdir={workdir.path}), "
            f"got none of {', '.join(missing)}"
        )
    return evaluation


def latencies(models: Sequence[pathlib.Path]) -> dict[str, dict[str, Any]]:
    """Measured latencies of published versions by the digest of their run's settings.

    Args:
      models: folders of versions, each with a manifest.

    Returns:
      Per digest `ms`, the median of one image by size, `threads`, and `hardware`.

    Raises:
      InputError: if a folder has no manifest.
    """
    found = {}
    for folder in models:
        manifest = read_manifest(folder)
        rows = [row for row in manifest["latency"]["measurements"] if row["batch_size"] == 1]
        by_signature = {row["signature"]: row for row in rows}
        found[manifest["config_digest"]] = {
            "ms": {
                str(size): by_signature[f"ensemble_{size}"]["p50_ms"] for size in manifest["sizes"]
            },
            "threads": rows[0]["threads"],
            "hardware": manifest["latency"]["hardware"]["processor"],
        }
    return found


def describe(
    name: str,
    run: TrainedRun,
    evaluation: Mapping[str, Any],
    latency: Mapping[str, Any] | None,
    pictures: int,
) -> dict[str, Any]:
    """Everything that the page shows of one run.

    Args:
      name: heading of the run.
      run: the trained run.
      evaluation: see `read_evaluation`.
      latency: one of `latencies`; None if it was not measured.
      pictures: test images to show with the answers of every size.

    Returns:
      JSON values; the page's script names what it reads.
    """
    rows = [{figure: row[figure] for figure in _ROW} for row in evaluation["sizes"]]
    for row in rows:
        row["latency_ms"] = latency["ms"].get(str(row["size"])) if latency else None
    changed = configs.differences(configs.default(), run.config)
    stopping = evaluation["early_stopping"] or {"curve": []}
    return {
        "name": name,
        "settings": [f"{field} = {value!r}" for field, (_, value) in changed],
        "split": evaluation["split"],
        "examples": evaluation["examples"],
        "step": evaluation["step"],
        "sizes": rows,
        "leaf_accuracy": evaluation["leaf_accuracy"],
        "early_stopping": [
            {key: point[key] for key in ("multiply_adds", "accuracy")}
            for point in stopping["curve"]
        ],
        "corruptions": evaluation.get("corruptions"),
        "latency": latency and {key: latency[key] for key in ("threads", "hardware")},
        "tree": tree_drawing(run.model),
        "gallery": _gallery(run, [row["size"] for row in rows], pictures),
    }


def tree_drawing(model: TreeEnsemble) -> dict[str, Any]:
    """Nodes of the tree with their places.

    Returns:
      `blocks`, `leaves` and `nodes`: per node its `block`, its `row` (the mean of
      the leaves below it, from 0), the `parent`'s position in this list or None,
      `leaf` (whether a path ends here), the smallest `size` that needs it, and
      its `multiply_adds`.
    """
    tree = model.tree
    leaves_below = _leaves_below(tree)
    places = list(leaves_below)
    nodes = []
    for block, node in places:
        below = leaves_below[block, node]
        parent = places.index((block - 1, tree.parent(block, node))) if block else None
        nodes.append(
            {
                "block": block,
                "row": sum(below) / len(below),
                "parent": parent,
                "leaf": tree.is_leaf(block, node),
                "size": below[0] + 1,
                "multiply_adds": cost.node_cost(model.node_models[block][node]).multiply_adds,
            }
        )
    return {"blocks": tree.blocks, "leaves": tree.leaves, "nodes": nodes}


def _leaves_below(tree: Paths) -> dict[tuple[int, int], list[int]]:
    """The leaves whose paths hold each node, one block after the other."""
    below: dict[tuple[int, int], list[int]] = {
        place: [] for place in tree.nodes_of(range(tree.leaves))
    }
    for leaf in range(tree.leaves):
        for place in enumerate(tree.path(leaf)):
            below[place].append(leaf)
    return below


def _gallery(run: TrainedRun, sizes: Sequence[int], pictures: int) -> dict[str, Any]:
    """Test images and what each size says of them, the telling ones first.

    An image tells the more, the more often the answer changes between right and
    wrong as the ensemble grows. Taken from the first thousand.
    """
    ((images, labels),) = run.data_set.evaluation_batches("test", 1000).take(1)
    leaf_logits = run.model(images, training=False)
    scores = ensemble_log_probabilities(leaf_logits, sizes, run.config.objective.average)
    probabilities = np.exp(np.asarray(scores))
    answers, labels = probabilities.argmax(axis=-1), labels.numpy()
    right = answers == labels[:, None]
    flips = (right[:, 1:] != right[:, :-1]).sum(axis=1)
    telling = np.argsort(-flips, kind="stable")[: pictures // 2]
    usual = [index for index in range(len(labels)) if index not in telling]
    chosen = [*telling, *usual[: pictures - len(telling)]]
    return {
        "classes": list(run.data_set.spec.class_names),
        "images": [
            {
                "png": _png(images[index].numpy()),
                "label": int(labels[index]),
                "answers": {
                    str(size): {
                        "label": int(answers[index, column]),
                        "confidence": round(float(probabilities[index, column].max()), 4),
                    }
                    for column, size in enumerate(sizes)
                },
            }
            for index in chosen
        ],
    }


def _png(image: np.ndarray) -> str:
    """An image `[height, width, channels]` as a data URI."""
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
