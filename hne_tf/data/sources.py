"""Where the data sets come from: scikit-learn, TFDS or a folder of images."""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from ml_collections import config_dict

from hne_tf.data import fingerprint, image_folder, subsets, tfds_sets
from hne_tf.data.augmentation import Augmentation
from hne_tf.data.encoded import EncodedSplit, Readers
from hne_tf.data.pipeline import SPLITS, DataSet, Split, check_at_least
from hne_tf.data.pixels import Pixels
from hne_tf.data.tfds_sets import SplitArrays
from hne_tf.errors import InputError, extra
from hne_tf.image_spec import ImageSpec

CIFAR_VALIDATION_EXAMPLES = 5000

# Mean and standard deviation per channel over the training split, in uint8
# units. CIFAR-100's are over all of train, validation included; image folders
# take ImageNet's.
_IMAGENET_STATISTICS = (123.68, 116.28, 103.53), (58.40, 57.12, 57.38)
STATISTICS = {
    "digits": ((77.76,), (95.80,)),
    "cifar10": ((125.34, 122.97, 113.90), (63.00, 62.10, 66.71)),
    "cifar100": ((129.31, 124.06, 112.43), (68.16, 65.38, 70.43)),
    "imagenet2012": _IMAGENET_STATISTICS,
    "image_folder": _IMAGENET_STATISTICS,
}


def load(config: config_dict.ConfigDict) -> DataSet:
    """Loads the data set that `config` names.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if a field breaks a rule, or the data are missing or not laid
        out as they must be.
    """
    if config.name not in _LOADERS:
        raise InputError(f"data.name must be one of {', '.join(_LOADERS)}, got {config.name!r}")
    check_at_least("data.train_examples", config.train_examples, 0)
    # Encoded pictures have no size in common.
    least = int(config.name in _ENCODED)
    check_at_least(f"data.image_size of {config.name}", config.image_size, least)
    if config.name not in _ENCODED:
        _check_unset(config, _CROPS)
    augmentation = Augmentation(config.pad_pixels, config.flip, config.color_jitter)
    class_names, pixels, splits, found = _LOADERS[config.name](config)
    if config.pad_pixels >= min(pixels.shape[:2]):
        # Or some crops would show nothing of the picture.
        raise InputError(
            f"data.pad_pixels must be less than the {min(pixels.shape[:2])} pixels of a side of "
            f"{config.name}, got {config.pad_pixels}"
        )
    if config.color_jitter and pixels.shape[-1] != 3:
        raise InputError(
            f"data.color_jitter is for coloured images and must be 0 for {config.name}, "
            f"got {config.color_jitter}"
        )
    spec = ImageSpec(pixels.shape, class_names, *STATISTICS[config.name], pixels.central_crop)
    return DataSet(config.name, spec, splits, augmentation, found, _fingerprint(config))


def _fingerprint(config: config_dict.ConfigDict) -> str:
    """Name and version of a data set, or what tells a folder of pictures from others."""
    if config.name == "image_folder":
        return fingerprint.of_folder(image_folder.root(config))
    return config.name if config.name == "digits" else tfds_sets.version(config)


def _check_unset(config: config_dict.ConfigDict, fields: Sequence[str]) -> None:
    for field in fields:
        if config[field]:
            raise InputError(
                f"data.{field} is for {' and '.join(_ENCODED)} only and must be 0 for "
                f"{config.name}, got {config[field]!r}"
            )


# What a loader returns: class names, pixels, splits and lines for the user.
_Loaded = tuple[tuple[str, ...], Pixels, Mapping[str, Split | EncodedSplit], tuple[str, ...]]


def _load_digits(config: config_dict.ConfigDict) -> _Loaded:
    """The 1,797 real 8x8 digits inside scikit-learn; needs no network."""
    # Imported by the loaders that use them, so that others need not wait for it.
    with extra("data"):
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
    return _in_memory(tuple(map(str, digits.target_names)), arrays, config)


def _load_cifar(config: config_dict.ConfigDict) -> _Loaded:
    class_names, (images, labels), test = tfds_sets.read_arrays(config)
    train = slice(None, -CIFAR_VALIDATION_EXAMPLES)
    validation = slice(-CIFAR_VALIDATION_EXAMPLES, None)
    arrays = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": test,
    }
    return _in_memory(class_names, arrays, config)


def _in_memory(
    class_names: tuple[str, ...], arrays: Mapping[str, SplitArrays], config: config_dict.ConfigDict
) -> _Loaded:
    """Splits that hold their images in host memory, and resize those of a batch."""
    height, width, channels = arrays["train"][0].shape[1:]
    pixels = Pixels(config.image_size or height, config.image_size or width, channels)
    splits = {}
    # Pipelines run on the host; on an accelerator they would copy from it.
    with tf.device("CPU:0"):
        for name, (images, labels) in arrays.items():
            if name == "train":
                kept = subsets.stratified(labels, config.train_examples)
                images, labels = images[kept], labels[kept]
            gather = functools.partial(_gather, tf.constant(images), pixels)
            splits[name] = Split(tf.constant(labels, tf.int32), gather)
    return class_names, pixels, splits, ()


def _gather(images: tf.Tensor, pixels: Pixels, indices: tf.Tensor) -> tf.Tensor:
    """Images of some indices, resized unless they have their size."""
    gathered = tf.gather(images, indices)
    if images.shape[1:] == pixels.shape:
        return gathered
    # Stateless, or tf.data would make one batch at a time where operations are deterministic.
    resized = tf.numpy_function(pixels.images, [gathered], tf.uint8, stateful=False)
    return tf.ensure_shape(resized, (None, *pixels.shape))


def _load_encoded(
    find: Callable[[config_dict.ConfigDict], tuple[tuple[str, ...], Readers, tuple[str, ...]]],
    config: config_dict.ConfigDict,
) -> _Loaded:
    """Splits whose pictures are decoded when a batch needs them."""
    size = config.image_size
    pixels = Pixels(size, size, central_crop=config.central_crop)
    class_names, readers, found = find(config)
    splits = {
        name: EncodedSplit(examples, fetch, pixels, config.random_resized_crop, config.skip_corrupt)
        for name, (examples, fetch) in readers.items()
    }
    return class_names, pixels, splits, found


_ENCODED = {"imagenet2012": tfds_sets.find_imagenet, "image_folder": image_folder.find}
_CROPS = ("random_resized_crop", "central_crop")
_LOADERS = {
    "digits": _load_digits,
    "cifar10": _load_cifar,
    "cifar100": _load_cifar,
    **{name: functools.partial(_load_encoded, find) for name, find in _ENCODED.items()},
}
