"""Where the data sets come from: scikit-learn, TFDS or a folder of images."""

import contextlib
import functools
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import config_dict

from hne_tf.data.pipeline import SPLITS, DataSet, Split, check_at_least
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec

CIFAR_VALIDATION_EXAMPLES = 5000
IMAGE_FORMATS = ("JPEG", "PNG", "GIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif")

# Mean and standard deviation per channel over the training split, in uint8
# units. CIFAR-100's are over all of train, validation included; image folders
# take ImageNet's.
STATISTICS = {
    "digits": ((77.76,), (95.80,)),
    "cifar10": ((125.34, 122.97, 113.90), (63.00, 62.10, 66.71)),
    "cifar100": ((129.31, 124.06, 112.43), (68.16, 65.38, 70.43)),
    "image_folder": ((123.68, 116.28, 103.53), (58.40, 57.12, 57.38)),
}

# Arrays of one split: images uint8 [n, height, width, channels], labels [n].
Arrays = tuple[np.ndarray, np.ndarray]


def load(config: config_dict.ConfigDict) -> DataSet:
    """Loads the data set that `config` names.

    Args:
      config: the `data` section of `hne_tf.config.default()`.

    Raises:
      InputError: if a field breaks a rule, or the data are missing or not laid
        out as they must be.
    """
    loaders = {
        "digits": _load_digits,
        "cifar10": _load_cifar,
        "cifar100": _load_cifar,
        "image_folder": _load_image_folder,
    }
    if config.name not in loaders:
        raise InputError(f"data.name must be one of {', '.join(loaders)}, got {config.name!r}")
    check_at_least("data.pad_pixels", config.pad_pixels, 0)
    check_at_least("data.train_examples", config.train_examples, 0)
    if config.name == "image_folder":
        check_at_least("data.image_size of an image_folder", config.image_size, 1)
    elif config.image_size:
        raise InputError(
            f"data.image_size is for image_folder only and must be 0 for {config.name}, "
            f"got {config.image_size!r}"
        )
    class_names, image_shape, splits = loaders[config.name](config)
    mean, std = STATISTICS[config.name]
    return DataSet(
        name=config.name,
        spec=ImageSpec(image_shape, class_names, mean, std),
        splits=splits,
        pad_pixels=config.pad_pixels,
        flip=config.flip,
    )


# What a loader returns: class names, image shape, splits.
_Loaded = tuple[tuple[str, ...], tuple[int, int, int], dict[str, Split]]


def _load_digits(config: config_dict.ConfigDict) -> _Loaded:
    """The 1,797 real 8x8 digits inside scikit-learn; needs no network."""
    # Imported by the loaders that use them, so that others need not wait for it.
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = digits.target
    part = functools.partial(model_selection.train_test_split, random_state=0)
    rest, test = part(np.arange(len(labels)), test_size=360, stratify=labels)
    train, validation = part(rest, test_size=180, stratify=labels[rest])
    arrays = {
        name: (images[indices], labels[indices])
        for name, indices in zip(SPLITS, (train, validation, test), strict=True)
    }
    return tuple(map(str, digits.target_names)), (8, 8, 1), _in_memory(arrays, config)


def _load_cifar(config: config_dict.ConfigDict) -> _Loaded:
    class_names, (images, labels), test = _read_tfds(config)
    train = slice(None, -CIFAR_VALIDATION_EXAMPLES)
    validation = slice(-CIFAR_VALIDATION_EXAMPLES, None)
    arrays = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": test,
    }
    return class_names, (32, 32, 3), _in_memory(arrays, config)


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """TFDS warns of what is reported as an error here, or does not matter."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _read_tfds(config: config_dict.ConfigDict) -> tuple[tuple[str, ...], Arrays, Arrays]:
    """Class names, train and test arrays of a TFDS image classification set."""
    import tensorflow_datasets as tfds

    with _only_errors_logged():
        builder = tfds.builder(config.name, data_dir=config.data_dir or None)
        # TFDS would try for minutes to download without a network: only when told.
        if not builder.is_prepared():
            if not config.download:
                raise InputError(
                    f"data set {config.name} must be prepared in {builder.data_dir}, found none; "
                    "--config.data.download=True gets it, --config.data.data_dir looks elsewhere"
                )
            try:
                builder.download_and_prepare()
            except OSError as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"--config.data.download=True needs a network and room on the disk: fetching "
                    f"{config.name} into {builder.data_dir} ended with {reason}"
                ) from error
        wanted = tfds.decode.PartialDecoding({"image": True, "label": True})
        train, test = (
            (split["image"].numpy(), split["label"].numpy())
            for split in builder.as_dataset(split=["train", "test"], batch_size=-1, decoders=wanted)
        )
    return tuple(builder.info.features["label"].names), train, test


def _in_memory(arrays: Mapping[str, Arrays], config: config_dict.ConfigDict) -> dict[str, Split]:
    """Splits that hold their images in host memory."""
    splits = {}
    # Pipelines run on the host; on an accelerator they would copy from it.
    with tf.device("CPU:0"):
        for name, (images, labels) in arrays.items():
            if name == "train":
                kept = _subset(labels, config.train_examples)
                images, labels = images[kept], labels[kept]
            gather = functools.partial(tf.gather, tf.constant(images))
            splits[name] = Split(tf.constant(labels, tf.int32), gather)
    return splits


def _subset(labels: np.ndarray, examples: int) -> np.ndarray | slice:
    """What selects `examples` of the examples, each class in proportion; 0 is all."""
    from sklearn import model_selection

    if examples in (0, len(labels)):
        return slice(None)
    try:
        kept, _ = model_selection.train_test_split(
            np.arange(len(labels)), train_size=examples, stratify=labels, random_state=0
        )
    except ValueError as error:
        classes = len(np.unique(labels))
        raise InputError(
            f"data.train_examples must be 0 or {len(labels)} (all), or between {classes} and "
            f"{len(labels) - classes}, with two examples of each class to choose from, "
            f"got {examples}"
        ) from error
    return np.sort(kept)


def _load_image_folder(config: config_dict.ConfigDict) -> _Loaded:
    """Images in `data_dir/<split>/<class>/`, read when they are needed."""
    if not config.data_dir:
        raise InputError("data.data_dir must name the folder of an image_folder, got ''")
    root = pathlib.Path(config.data_dir).expanduser()
    class_names, paths, labels = _list_images(root, "train")
    files = {}
    if (root / "validation").exists():
        files["validation"] = _list_as(class_names, root, "validation")
    else:
        held_out = _every_tenth(labels)
        files["validation"] = paths[held_out], labels[held_out]
        paths, labels = paths[~held_out], labels[~held_out]
    files["test"] = _list_as(class_names, root, "test")
    kept = _subset(labels, config.train_examples)
    files["train"] = paths[kept], labels[kept]
    splits = {
        name: Split(
            tf.constant(labels, tf.int32),
            functools.partial(_read_images, tf.constant(paths), config.image_size),
        )
        for name, (paths, labels) in files.items()
    }
    return class_names, (config.image_size, config.image_size, 3), splits


def _list_as(class_names: tuple[str, ...], root: pathlib.Path, split: str) -> Arrays:
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
    _check_images(files.filenames)
    return tuple(files.target_names), files.filenames, files.target


def _check_images(paths: np.ndarray) -> None:
    """Raises an InputError that names the first file that is not an image.

    Reads headers only: the decoder that runs later cannot name the file.
    """
    from PIL import Image

    for path in paths:
        try:
            Image.open(path, formats=IMAGE_FORMATS).close()
        except OSError:  # that Pillow does not know the format, too
            formats = ", ".join(IMAGE_FORMATS)
            raise InputError(f"images must be readable {formats} files, got {path}") from None


def _every_tenth(labels: np.ndarray) -> np.ndarray:
    """Marks every tenth example of each class, bool `[n]`; `labels` is sorted."""
    within_class = np.arange(len(labels)) - np.searchsorted(labels, labels)
    # From the second on: a class with two examples keeps one to train on.
    held_out = within_class % 10 == 1
    if not held_out.any():
        raise InputError(
            "an image_folder without validation/ needs at least two training images in a class, "
            f"got {len(labels)} images in {len(np.unique(labels))} classes"
        )
    return held_out


def _read_images(paths: tf.Tensor, image_size: int, indices: tf.Tensor) -> tf.Tensor:
    """Reads, decodes and resizes images.

    Args:
      paths: string `[n]`.
      image_size: height and width to return.
      indices: int64 `[batch]` into `paths`.

    Returns:
      uint8 `[batch, image_size, image_size, 3]`.
    """

    def read(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image = tf.image.resize(image, [image_size, image_size], antialias=True)
        return tf.saturate_cast(tf.round(image), tf.uint8)

    spec = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
    return tf.map_fn(read, tf.gather(paths, indices), fn_output_signature=spec)
