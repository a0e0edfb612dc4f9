"""Images and labels in one `.npz` file, which any backend of Keras trains on.

    np.savez("flowers.npz", train_images=…, train_labels=…, test_images=…, test_labels=…)

Images are uint8 `[examples, height, width, channels]`, labels integers from 0. Optional are
`validation_images` and `validation_labels`, by default a fixed tenth of the training
images; `class_names`; `mean` and `std` per channel in uint8 units, by default those of the
training images.
"""

import hashlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import numpy as np
from ml_collections import config_dict

from hne_tf.data import subsets
from hne_tf.data.data_set import SPLITS
from hne_tf.data.source import ArraySource
from hne_tf.errors import InputError
from hne_tf.files import replacing
from hne_tf.image_spec import ImageSpec

_REQUIRED = ("train_images", "train_labels", "test_images", "test_labels")
_VALIDATION = ("validation_images", "validation_labels")
_DESCRIPTION = ("class_names", "mean", "std")


def load(config: config_dict.ConfigDict) -> ArraySource:
    """The arrays of the file that `data_dir` names.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if the file is missing or damaged, or its arrays break a rule.
    """
    path = pathlib.Path(os.path.expanduser(config.data_dir))
    arrays = _read(path)
    if missing := [name for name in _REQUIRED if name not in arrays]:
        raise InputError(
            f"{path} must hold {', '.join(_REQUIRED)}, got none of {', '.join(missing)}"
        )
    if (_VALIDATION[0] in arrays) != (_VALIDATION[1] in arrays):
        raise InputError(f"{path} must hold both of {' and '.join(_VALIDATION)}, or neither")
    _check(path, arrays)
    if _VALIDATION[0] not in arrays:
        arrays = {**arrays, **_with_validation(arrays["train_images"], arrays["train_labels"])}
    highest = max(int(arrays[f"{split}_labels"].max()) for split in SPLITS)
    names = tuple(map(str, arrays.get("class_names", range(highest + 1))))
    if highest >= len(names):
        raise InputError(f"labels in {path} must be below the {len(names)} classes, got {highest}")
    measured = ImageSpec.from_data(arrays["train_images"], names)
    statistics = tuple(
        tuple(map(float, arrays.get(name, getattr(measured, name)))) for name in ("mean", "std")
    )
    splits = {split: (arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in SPLITS}
    return ArraySource(names, statistics, fingerprint(path), splits)


def save(source: ArraySource, path: pathlib.Path) -> None:
    """Writes a data set, complete or not at all.

    Args:
      source: its arrays and what describes them.
      path: the file, which ends in `.npz`.
    """
    mean, std = source.statistics
    arrays = {"class_names": np.array(source.class_names), "mean": mean, "std": std}
    for split, (images, labels) in source.arrays.items():
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def fingerprint(path: pathlib.Path) -> str:
    """SHA-256 of the names, sizes and checksums of the arrays in a file.

    Where the file lies, when it was written and how it is compressed does not count.

    Raises:
      InputError: if it is not a readable `.npz` file.
    """
    hashed = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as file:
            for each in sorted(file.infolist(), key=lambda each: each.filename):
                hashed.update(f"{each.filename}\0{each.file_size}\0{each.CRC}\0".encode())
    except (OSError, zipfile.BadZipFile) as error:
        raise _unreadable(path, error) from None
    return hashed.hexdigest()


def _read(path: pathlib.Path) -> Mapping[str, np.ndarray]:
    known = (*_REQUIRED, *_VALIDATION, *_DESCRIPTION)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in known if name in file.files}
    # A lone array is no context manager: a TypeError.
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return InputError(f"data.data_dir of npz must be a .npz file, got {str(path)!r}: {reason}")


def _check(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises `InputError` for arrays that are no images, or labels that do not go with them."""
    shape = arrays["train_images"].shape[1:]
    for split in SPLITS:
        images, labels = arrays.get(f"{split}_images"), arrays.get(f"{split}_labels")
        if images is None or labels is None:
            continue
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[1:] != shape
            or not images.size
        ):
            raise InputError(
                f"{split}_images in {path} must be uint8 [examples, height, width, channels], of "
                f"one size in all splits, got {images.dtype.name} of {list(images.shape)}"
            )
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
            raise InputError(
                f"{split}_labels in {path} must be {len(images)} integers from 0, "
                f"got {labels.dtype.name} of {list(labels.shape)}"
            )


def _with_validation(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Training and validation examples, validation a tenth of each class."""
    held_out = subsets.a_tenth(labels, np.random.default_rng(0).random(len(labels)))
    return {
        "train_images": images[~held_out],
        "train_labels": labels[~held_out],
        "validation_images": images[held_out],
        "validation_labels": labels[held_out],
    }
