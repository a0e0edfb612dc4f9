"""Trained trees that come with the package.

`<name>.npz` holds the canonical weights with their batch norms, so that a model
can be trained further as well as deployed; `<name>.json` says how to build it
and what it was measured to do.
"""

import dataclasses
import json
import pathlib
from typing import Any

import ml_collections

from hne_tf.data import load
from hne_tf.errors import InputError
from hne_tf.exported import typed_json
from hne_tf.exported.manifest import Manifest
from hne_tf.files import write_json
from hne_tf.image_spec import ImageSpec
from hne_tf.models import folding, weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.training import build
from hne_tf.training.config import from_json
from hne_tf.training.schedule import Schedule
from hne_tf.training.trained import TrainedRun

_FOLDER = pathlib.Path(__file__).parent


def names() -> list[str]:
    """Names that `from_pretrained` takes."""
    return sorted(path.stem for path in _FOLDER.glob("*.npz"))


def from_pretrained(name: str, deploy: bool = False) -> TreeEnsemble:
    """Builds a model with trained weights.

    Args:
      name: one of `names()`, e.g. `"cifar10_cpu"`, or the path of a `.npz`
        file that `save` wrote.
      deploy: whether batch norms are folded, which answers faster and cannot
        be trained further.

    Returns:
      A model of uint8 images `[batch, height, width, channels]` to leaf logits
      `[batch, leaves, classes]`; `model.images.class_names` names the classes.

    Raises:
      InputError: if there is no such model.

    Example:
      >>> model = hne_tf.from_pretrained("cifar10_cpu")
      >>> leaf_logits = model.prefix(4)(images)
      >>> model.images.class_names[int(leaf_logits.numpy().mean(axis=1)[0].argmax())]
    """
    description, values = _read(name)
    config = from_json(description["config"])
    layers = DeployLayers() if deploy else build.training_layers(config)
    model = build.ensemble(config, layers, ImageSpec(**description["images"]))
    weights.load(model, folding.fold(values) if deploy else values)
    return model


def restore(name: str, data_dir: str | None = None) -> TrainedRun:
    """The run that a pretrained model comes from, with its data set.

    Args:
      name: as for `from_pretrained`.
      data_dir: where the data set lies, if not where TFDS keeps it.

    Raises:
      InputError: if there is no such model or no such data set.
    """
    description, _ = _read(name)
    config = ml_collections.ConfigDict(from_json(description["config"]))
    if data_dir is not None:
        config.data.data_dir = data_dir
    data_set = load(config.data)
    total = Schedule.of(config, data_set.examples("train")).total
    return TrainedRun(
        ml_collections.FrozenConfigDict(config), data_set, from_pretrained(name), total, total
    )


def _read(name: str) -> tuple[dict[str, Any], weights.CanonicalWeights]:
    """Description and weights of a pretrained model."""
    path = pathlib.Path(name) if name.endswith(".npz") else _FOLDER / f"{name}.npz"
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise InputError(f"a pretrained model is one of {', '.join(names())}, got {name!r}")
    return json.loads(path.with_suffix(".json").read_text()), weights.read_npz(path)


def save(run: TrainedRun, manifest: Manifest, path: pathlib.Path) -> None:
    """Writes a run's weights to `path` (`.npz`) and its description beside them (`.json`).

    Args:
      run: the trained run.
      manifest: of its export, for the accuracy it was measured to have.
      path: checked by `check`.
    """
    config = run.config.to_dict()
    # Where the data lay concerns nobody who uses the weights.
    config["data"]["data_dir"] = ""
    description = {
        "config": config,
        "images": dataclasses.asdict(run.data_set.spec),
        "accuracy": typed_json.encode(manifest.accuracy),
    }
    write_json(path.with_suffix(".json"), description)
    weights.save_npz(path, weights.read(run.model))


def check(run: TrainedRun, path: pathlib.Path) -> None:
    """Raises `InputError` unless a run's weights can be written to `path`."""
    if not isinstance(run.model.factory, TrainingLayers):
        raise InputError(
            "weights are written of a run with its batch norms, to be trained further; "
            f"got a compressed one, of {type(run.model.factory).__name__}"
        )
    if path.suffix != ".npz":
        raise InputError(f"--weights must end in .npz, got {path}")
    if path.exists():
        raise InputError(f"weights are never overwritten, and {path} exists")
