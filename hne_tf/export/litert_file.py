"""The TFLite file in a version's folder, for servers that compute with LiteRT."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from hne_tf.export import tflite, tflite_verification
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import load
from hne_tf.exported.versions import LITERT
from hne_tf.models.ensemble import TreeEnsemble

_DEFAULT_SIGNATURE = "serving_default"


def write(
    folder: pathlib.Path,
    model: TreeEnsemble,
    manifest: Manifest,
    temperatures: Sequence[float] | None,
    images: np.ndarray,
    leaf_logits: np.ndarray,
) -> None:
    """Writes the float32 file of a version that is being built, and verifies it.

    It has all signatures of the manifest but `serving_default`, which is the full
    ensemble once more.

    Args:
      folder: the version's.
      model: the deployed model.
      manifest: of the version; the file gets it without what is only the SavedModel's.
      temperatures: see `tflite.convert`.
      images: to verify the answers on, uint8 `[batch, height, width, channels]`.
      leaf_logits: the live model's answer, `[batch, leaves, classes]`.

    Raises:
      InputError: if the model does not convert to float32, or the file differs from
        the live model; nothing is left in the folder then.
    """
    path = folder / LITERT
    named = tuple(each for each in manifest.signatures if each.name != _DEFAULT_SIGNATURE)
    tflite.check_mode("float32", model)
    flatbuffer = tflite.convert(model, manifest.sizes, "float32", temperatures=temperatures)
    path.parent.mkdir(exist_ok=True)
    own = dataclasses.replace(manifest, signatures=named, mode="float32", latency=None, litert=None)
    tflite_file.write(path, flatbuffer, own)
    try:
        tflite_verification.verify(load(path), images, leaf_logits)
    except BaseException:
        path.unlink()
        raise
