"""What the manifest of a new export or file says."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from hne_tf.data.pixels import Pixels
from hne_tf.evaluation import cost
from hne_tf.exported.manifest import Manifest
from hne_tf.models.ensemble import TreeEnsemble

_PACKAGES = ("hne_tf", "tensorflow", "keras")


def describe(
    model: TreeEnsemble,
    model_name: str,
    sizes: Sequence[int],
    record: Mapping[str, Any] | None = None,
    **others: Any,
) -> Manifest:
    """Describes a model.

    Args:
      model: the deployed model.
      model_name: name it is served under.
      sizes: exported ensemble sizes.
      record: what else is known of where the model comes from, such as the `step` of its run.
      others: see `Manifest.of_tree`.

    Raises:
      InputError: for a record that a manifest cannot hold.
    """
    pixels = Pixels.of(model.images)
    return Manifest.of_tree(
        model.tree,
        model_name,
        model.images.class_names,
        model.images.shape,
        sizes=sizes,
        average=model.average,
        pixels=pixels and pixels.to_json(),
        cost=cost.per_size(model, sizes),
        versions=_versions(),
        record=dict(record or {}),
        **others,
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # A checkout that is on the path but not installed.
            versions[package] = "not installed"
    return versions
