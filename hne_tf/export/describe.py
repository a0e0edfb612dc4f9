"""What the manifest of a new export or file says."""

import dataclasses
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from hne_tf.data.pixels import Pixels
from hne_tf.evaluation import cost
from hne_tf.exported.manifest import FORMAT, step_entry
from hne_tf.models.ensemble import TreeEnsemble

_PACKAGES = ("hne_tf", "tensorflow", "keras")


def describe(
    model: TreeEnsemble,
    model_name: str,
    sizes: Sequence[int],
    record: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describes a model but for what is measured.

    Args:
      model: the deployed model.
      model_name: name it is served under.
      sizes: exported ensemble sizes.
      record: what else is known of where the model comes from, such as the `step`
        of its run.

    Returns:
      JSON values: `model`, `branching` (or `exits`), `sizes`, `average`, `signatures` (name
      and size), `steps` (see `step_entry`), `classes`, `input` (of the ensemble
      signatures), `pixels` (where pictures can be its input, see `Pixels.to_json`),
      `cost` by size, the record and the versions of packages.
    """
    costs = cost.per_size(model, sizes)
    pixels = Pixels.of(model.images)
    return {
        "format": FORMAT,
        "model": model_name,
        **dataclasses.asdict(model.tree),
        "sizes": list(sizes),
        "average": model.average,
        "signatures": [
            {"name": "serving_default", "size": model.tree.leaves},
            *({"name": f"ensemble_{size}", "size": size} for size in sizes),
        ],
        "steps": [step_entry(step) for step in model.tree.steps],
        "classes": list(model.images.class_names),
        "input": {"name": "images", "dtype": "uint8", "shape": [None, *model.images.shape]},
        **({"pixels": pixels.to_json()} if pixels else {}),
        "cost": {
            str(size): {
                "multiply_adds": costs[size].multiply_adds,
                "parameters": costs[size].parameters,
            }
            for size in sizes
        },
        **(record or {}),
        "versions": _versions(),
    }


def accuracy(split: str, examples: int, by_size: Mapping[int, float]) -> dict[str, Any]:
    """The manifest's `accuracy`: what each ensemble size reached on which images."""
    return {
        "split": split,
        "examples": examples,
        "by_size": {str(size): value for size, value in by_size.items()},
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
