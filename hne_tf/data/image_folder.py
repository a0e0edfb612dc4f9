"""Pictures in one folder per class, read when they are needed."""

import functools
import pathlib

import numpy as np
import tensorflow as tf
from ml_collections import config_dict

from hne_tf.data import subsets
from hne_tf.data.encoded import Readers
from hne_tf.errors import InputError, extra

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")

# Paths `[n]` and labels `[n]` of one split.
Files = tuple[np.ndarray, np.ndarray]


def find(config: config_dict.ConfigDict) -> tuple[tuple[str, ...], Readers]:
    """The examples in `data_dir/<split>/<class>/`.

    Without a folder `validation`, every tenth file of each class in `train` is
    held out for it.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Returns:
      Class names; number of examples and their reader by split.

    Raises:
      InputError: if the folders are not laid out as they must be.
    """
    if not config.data_dir:
        raise InputError("data.data_dir must name the folder of an image_folder, got ''")
    root = pathlib.Path(config.data_dir).expanduser()
    class_names, paths, labels = _list_images(root, "train")
    files = {}
    if (root / "validation").exists():
        files["validation"] = _list_as(class_names, root, "validation")
    else:
        held_out = subsets.every_tenth(labels)
        files["validation"] = paths[held_out], labels[held_out]
        paths, labels = paths[~held_out], labels[~held_out]
    files["test"] = _list_as(class_names, root, "test")
    kept = subsets.stratified(labels, config.train_examples)
    files["train"] = paths[kept], labels[kept]
    readers = {}
    # Pipelines run on the host; on an accelerator they would copy from it.
    with tf.device("CPU:0"):
        for split, (paths, labels) in files.items():
            fetch = functools.partial(_fetch, tf.constant(paths), tf.constant(labels, tf.int32))
            readers[split] = len(paths), fetch
    return class_names, readers


def _fetch(
    paths: tf.Tensor, labels: tf.Tensor, index: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return tf.io.read_file(paths[index]), labels[index], paths[index]


def _list_as(class_names: tuple[str, ...], root: pathlib.Path, split: str) -> Files:
    """Paths and labels of a split whose classes must be those of train."""
    found, paths, labels = _list_images(root, split)
    if found != class_names:
        missing = sorted(set(class_names) - set(found))
        extra = sorted(set(found) - set(class_names))
        raise InputError(
            f"classes in {root / split} must be those of train, got missing {missing}, "
            f"extra {extra}"
        )
    return paths, labels


def _list_images(root: pathlib.Path, split: str) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Class names, sorted paths `[n]` and labels `[n]` of one folder of classes."""
    with extra("data"):
        from sklearn import datasets

    folder = root / split
    rule = f"an image_folder needs {folder}/<class>/ with {', '.join(IMAGE_SUFFIXES)} files"
    if not folder.is_dir():
        raise InputError(f"{rule}, got no such folder (data.data_dir)")
    # Hidden folders are what tools leave behind, not classes.
    classes = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    suffixes = [case for suffix in IMAGE_SUFFIXES for case in (suffix, suffix.upper())]
    files = datasets.load_files(
        folder, categories=classes, load_content=False, shuffle=False, allowed_extensions=suffixes
    )
    counts = np.bincount(files.target.astype(int), minlength=len(files.target_names))
    empty = [name for name, count in zip(files.target_names, counts, strict=True) if not count]
    if empty or not len(files.filenames):
        raise InputError(f"{rule}, got no image in {', '.join(empty) or 'any class'}")
    return tuple(files.target_names), files.filenames, files.target
