"""The manifest inside an export: what a client or an operator has to know of the model."""

import dataclasses
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from hne_tf.errors import InputError
from hne_tf.evaluation import cost
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.training import config as configs
from hne_tf.training.trained import TrainedRun
from hne_tf.tree import Step

MANIFEST = "assets.extra/hne_manifest.json"
FORMAT = 1
_PACKAGES = ("hne_tf", "tensorflow", "keras")


def build_manifest(
    run: TrainedRun,
    model_name: str,
    model: TreeEnsemble,
    sizes: Sequence[int],
    evaluation: dict[str, Any],
    latency: dict[str, Any],
) -> dict[str, Any]:
    """Describes an export.

    Args:
      run: the trained run.
      model_name: name it is served under.
      model: the deployed model.
      sizes: exported ensemble sizes.
      evaluation: see `evaluation.evaluate`.
      latency: see `profiling.measure`.

    Returns:
      JSON values: `model`, `branching` (or `exits`), `sizes`, `average`, `signatures` (name
      and size), `steps` (see `step_entry`), `classes`, `input` (of the ensemble
      signatures), `pixels` (if pictures can be its input, see `Pixels.to_json`), `cost`
      and `accuracy` by size, `early_stopping` (see `early_stopping.calibrated`; None if
      the evaluation is without), `latency` and what it was all made with.
    """
    average = run.config.objective.average
    costs = cost.per_size(model, sizes, average)
    accuracy = {str(row["size"]): row["accuracy"] for row in evaluation["sizes"]}
    return {
        "format": FORMAT,
        "model": model_name,
        **dataclasses.asdict(model.tree),
        "sizes": list(sizes),
        "average": average,
        "signatures": [
            {"name": "serving_default", "size": model.tree.leaves},
            *({"name": f"ensemble_{size}", "size": size} for size in sizes),
        ],
        "steps": [step_entry(step) for step in model.tree.steps],
        "classes": list(model.images.class_names),
        "input": {"name": "images", "dtype": "uint8", "shape": [None, *model.images.shape]},
        **({"pixels": pixels.to_json()} if (pixels := model.images.pixels) else {}),
        "cost": {
            str(size): {
                "multiply_adds": costs[size].multiply_adds,
                "parameters": costs[size].parameters,
            }
            for size in sizes
        },
        "accuracy": {
            "split": evaluation["split"],
            "examples": evaluation["examples"],
            "by_size": {str(size): accuracy[str(size)] for size in sizes},
        },
        "early_stopping": evaluation.get("early_stopping"),
        "latency": latency,
        "step": run.step,
        "total_steps": run.total_steps,
        "config_digest": configs.digest(run.config),
        "versions": _versions(),
    }


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a published version.

    Raises:
      InputError: if the folder is without a manifest of this format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"a model must be a version's folder with {MANIFEST}, got {str(folder)!r}: "
            f"{error.strerror}"
        ) from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} must be JSON: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else manifest
    if found != FORMAT:
        raise InputError(f"{str(path)!r} must have format {FORMAT}, got {found!r:.40}")
    return manifest


def step_entry(step: Step) -> dict[str, Any]:
    """How to call a step: its `input` tensor, and which earlier output (or `images`) goes in."""
    from_images = step.branch_block == 0
    return {
        "signature": f"step_{step.size}",
        "size": step.size,
        "branch_block": step.branch_block,
        "input": "images" if from_images else "cache",
        "starts_from": "images" if from_images else f"cache_{step.branch_block - 1}",
        "caches": [f"cache_{block}" for block in step.cached_blocks],
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # A checkout that is on the path but not installed.
            versions[package] = "not installed"
    return versions
