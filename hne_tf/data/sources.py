"""From the data set that a config names to batches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from ml_collections import config_dict

from hne_tf.data import sets, subsets
from hne_tf.data.augmentation import Augmentation
from hne_tf.data.data_set import ArraySplit, check_at_least
from hne_tf.data.encoded import EncodedSplit
from hne_tf.data.pixels import Pixels
from hne_tf.data.random_layers import RandomLayers, views
from hne_tf.data.source import ArraySource, PictureSource
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec

if TYPE_CHECKING:
    from hne_tf.data.arrays.batches import ArrayDataSet
    from hne_tf.data.pipeline import DataSet

# For pictures that are decoded when a batch needs them.
_CROPS = ("random_resized_crop", "central_crop")

Splits = Mapping[str, ArraySplit | EncodedSplit]


def load(config: config_dict.ConfigDict) -> "DataSet | ArrayDataSet":
    """Loads the data set that `config` names.

    Its batches are `tf.data` pipelines under TensorFlow, and arrays under other backends
    of Keras, where no TensorFlow is loaded.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if a field breaks a rule, or the data are missing or not laid
        out as they must be.
    """
    check_at_least("data.train_examples", config.train_examples, 0)
    check_at_least("data.image_size", config.image_size, 0)
    layers = RandomLayers(config.rand_augment, config.mix, config.random_erasing)
    augmentation = Augmentation(
        config.pad_pixels, config.flip, config.color_jitter, layers, views(config.views, layers)
    )
    source = sets.find(config.name)(config)
    make = _encoded if isinstance(source, PictureSource) else _in_memory
    pixels, splits = make(source, config)
    if config.pad_pixels >= min(pixels.shape[:2]):
        # Or some crops would show nothing of the picture.
        raise InputError(
            f"data.pad_pixels must be less than the {min(pixels.shape[:2])} pixels of a side of "
            f"{config.name}, got {config.pad_pixels}"
        )
    strongest = max(layers.rand_augment for layers in (layers, *augmentation.views))
    for field, strength in (("color_jitter", config.color_jitter), ("rand_augment", strongest)):
        if strength and pixels.shape[-1] != 3:
            raise InputError(
                f"data.{field} is for coloured images and must be 0 for {config.name}, "
                f"got {strength}"
            )
    spec = ImageSpec(pixels.shape, source.class_names, *source.statistics, pixels.central_crop)
    return _with_batches(config.name, spec, splits, augmentation, source.found, source.fingerprint)


def _with_batches(
    name: str, spec: ImageSpec, splits: Splits, *described: Any
) -> "DataSet | ArrayDataSet":
    """The data set whose batches suit the backend."""
    if keras.backend.backend() != "tensorflow":
        from hne_tf.data.arrays.batches import ArrayDataSet

        return ArrayDataSet(name, spec, splits, *described)
    from hne_tf.data.pipeline import DataSet, Split

    tensors = {
        name: Split.of(split) if isinstance(split, ArraySplit) else split
        for name, split in splits.items()
    }
    return DataSet(name, spec, tensors, *described)


def _in_memory(source: ArraySource, config: config_dict.ConfigDict) -> tuple[Pixels, Splits]:
    """Splits that hold their images in host memory, and resize those of a batch."""
    for field in _CROPS:
        if config[field]:
            raise InputError(
                f"data.{field} is for encoded pictures and must be 0 for {config.name}, "
                f"got {config[field]!r}"
            )
    height, width, channels = source.arrays["train"][0].shape[1:]
    pixels = Pixels(config.image_size or height, config.image_size or width, channels)
    splits = {}
    for name, (images, labels) in source.arrays.items():
        if name == "train":
            kept = subsets.stratified(labels, config.train_examples)
            images, labels = images[kept], labels[kept]
        splits[name] = ArraySplit(images, labels.astype(np.int32), pixels)
    return pixels, splits


def _encoded(source: PictureSource, config: config_dict.ConfigDict) -> tuple[Pixels, Splits]:
    """Splits whose pictures are decoded when a batch needs them."""
    size = config.image_size
    # Encoded pictures have no size in common.
    check_at_least(f"data.image_size of {config.name}", size, 1)
    pixels = Pixels(size, size, central_crop=config.central_crop)
    splits = {
        name: EncodedSplit(examples, fetch, pixels, config.random_resized_crop, config.skip_corrupt)
        for name, (examples, fetch) in source.readers.items()
    }
    return pixels, splits
