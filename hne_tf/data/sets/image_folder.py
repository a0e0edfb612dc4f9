"""Pictures in one folder per class, read when they are needed."""

import dataclasses
import functools
import hashlib
import os
import pathlib

import numpy as np
from ml_collections import config_dict

from hne_tf.data import fingerprint, subsets
from hne_tf.data.encoded import Encoded
from hne_tf.data.pixels import SUFFIXES, read_bytes
from hne_tf.data.sets.class_folders import Ignored, find_splits, list_classes
from hne_tf.data.source import IMAGENET_STATISTICS, PictureSource
from hne_tf.errors import InputError

# Up to so many classes are told one by one.
_TOLD_CLASSES = 20


@dataclasses.dataclass(frozen=True)
class Files:
    """The picture files of one split.

    Attributes:
      class_names: sorted.
      paths: of type object `[n]`, sorted within each class.
      labels: `[n]`, sorted.
    """

    class_names: tuple[str, ...]
    paths: np.ndarray
    labels: np.ndarray

    def part(self, rows: np.ndarray | slice) -> "Files":
        """Some of the files."""
        return Files(self.class_names, self.paths[rows], self.labels[rows])

    def fetch(self, index: int) -> Encoded:
        """The picture at an index."""
        path = self.paths[index]
        # A path may hold line breaks, and bytes that are no text.
        return Encoded(repr(path), int(self.labels[index]), functools.partial(read_bytes, path))

    def __str__(self) -> str:
        """The number of pictures, and how many are of each class."""
        counts = np.bincount(self.labels, minlength=len(self.class_names))
        if len(counts) > _TOLD_CLASSES:
            told = f"{counts.min():,} to {counts.max():,} in each of {len(counts):,} classes"
        else:
            pairs = zip(self.class_names, counts, strict=True)
            told = ", ".join(f"{name} {count:,}" for name, count in pairs)
        return f"{len(self.labels):,} pictures ({told})"


def load(config: config_dict.ConfigDict) -> PictureSource:
    """The examples in `data_dir/<split>/<class>/`.

    Without a folder `validation`, about a tenth of the files of each class in `train` is
    held out for it, by their names.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if the folders are not laid out as they must be.
    """
    folder = root(config)
    ignored = Ignored()
    folders = find_splits(folder, ignored)
    files = {}
    for split in ("train", "validation", "test"):
        if split in folders or split != "validation":
            files[split] = _list(folders.get(split, folder / split), ignored)
            _check_classes(split, files)
    if "validation" not in files:
        held_out = _held_out(files["train"], folders["train"])
        files["validation"] = files["train"].part(held_out)
        files["train"] = files["train"].part(~held_out)
    kept = subsets.stratified(files["train"].labels, config.train_examples)
    files["train"] = files["train"].part(kept)
    found = [f"{split}: {files[split]}" for split in ("train", "validation", "test")]
    if "validation" not in folders:
        found[1] += ", a tenth of train"
    if str(ignored):
        found.append(f"ignored: {ignored}")
    readers = {split: (len(each.labels), each.fetch) for split, each in files.items()}
    return PictureSource(
        files["train"].class_names,
        IMAGENET_STATISTICS,
        fingerprint.of_folder(folder),
        readers,
        found=tuple(found),
    )


def root(config: config_dict.ConfigDict) -> pathlib.Path:
    """The folder of the splits.

    Raises:
      InputError: if the settings name none.
    """
    if not config.data_dir:
        raise InputError("data.data_dir must name the folder of an image_folder, got ''")
    try:
        return pathlib.Path(config.data_dir).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"data.data_dir must be a folder, got {config.data_dir!r}: {error}"
        ) from None


def _held_out(files: Files, folder: pathlib.Path) -> np.ndarray:
    """Marks about a tenth of each class for validation, bool `[n]`.

    By the names of the files, so that those held out stay so when pictures are added.
    """
    names = [os.fsencode(os.path.relpath(path, folder)) for path in files.paths]
    hashes = np.array([int.from_bytes(hashlib.sha256(name).digest()[:4], "big") for name in names])
    return subsets.a_tenth(files.labels, hashes / 2**32)


def _list(folder: pathlib.Path, ignored: Ignored) -> Files:
    """The files of a split.

    Raises:
      InputError: if the folder is missing, or a class is without a picture.
    """
    rule = f"an image_folder needs pictures in {str(folder / '<class>')!r}"
    if not folder.is_dir():
        raise InputError(f"{rule}, got no such folder (data.data_dir)")
    classes = list_classes(folder, ignored)
    empty = [each.name for each in classes if not each.paths]
    if empty or not classes:
        what = f"none in {', '.join(map(repr, empty))}" if empty else "no class"
        reasons = f"; ignored: {ignored}" if str(ignored) else ""
        raise InputError(f"{rule} ({', '.join(sorted(SUFFIXES))}), got {what}{reasons}")
    paths = np.array([path for each in classes for path in each.paths], object)
    labels = np.repeat(np.arange(len(classes)), [len(each.paths) for each in classes])
    return Files(tuple(each.name for each in classes), paths, labels)


def _check_classes(split: str, files: dict[str, Files]) -> None:
    """Raises `InputError` unless the classes of a split are those of train."""
    got, expected = set(files[split].class_names), set(files["train"].class_names)
    if got != expected:
        raise InputError(
            f"classes of {split} must be those of train, got missing {sorted(expected - got)}, "
            f"extra {sorted(got - expected)}"
        )
