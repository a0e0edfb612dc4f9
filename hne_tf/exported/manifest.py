"""The manifest inside an export: what a client or an operator has to know of the model."""

import json
import pathlib
from typing import Any

from hne_tf.errors import InputError
from hne_tf.tree import Step

MANIFEST = "assets.extra/hne_manifest.json"
FORMAT = 1


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
