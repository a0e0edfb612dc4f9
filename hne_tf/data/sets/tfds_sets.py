"""Data sets of TensorFlow Datasets, prepared on the disk."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from ml_collections import config_dict

from hne_tf.data.encoded import Encoded, Fetch
from hne_tf.data.source import IMAGENET_STATISTICS, ArraySource, PictureSource
from hne_tf.errors import InputError, extra

with extra("data"):
    import tensorflow as tf

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

CIFAR_VALIDATION_EXAMPLES = 5000
IMAGENET_VALIDATION_EXAMPLES = 50_000

# Mean and standard deviation per channel over the training split, in uint8 units;
# CIFAR-100's are over all of train, validation included.
STATISTICS = {
    "cifar10": ((125.34, 122.97, 113.90), (63.00, 62.10, 66.71)),
    "cifar100": ((129.31, 124.06, 112.43), (68.16, 65.38, 70.43)),
}

# Arrays of one split: images uint8 [n, height, width, channels], labels [n].
SplitArrays = tuple[np.ndarray, np.ndarray]


def load_cifar(config: config_dict.ConfigDict) -> ArraySource:
    """CIFAR-10 or CIFAR-100; the last 5,000 images of train are validation.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if the set is missing or cannot be downloaded.
    """
    class_names, version, (images, labels), test = read_arrays(config)
    train = slice(None, -CIFAR_VALIDATION_EXAMPLES)
    validation = slice(-CIFAR_VALIDATION_EXAMPLES, None)
    arrays = {
        "train": (images[train], labels[train]),
        "validation": (images[validation], labels[validation]),
        "test": test,
    }
    return ArraySource(class_names, STATISTICS[config.name], version, arrays)


def read_arrays(
    config: config_dict.ConfigDict,
) -> tuple[tuple[str, ...], str, SplitArrays, SplitArrays]:
    """Class names, name with version, train and test arrays of an image classification set.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if the set is missing or cannot be downloaded.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    with _only_errors_logged():
        builder = _prepared(config)
        wanted = tfds.decode.PartialDecoding({"image": True, "label": True})
        train, test = (
            (split["image"].numpy(), split["label"].numpy())
            for split in builder.as_dataset(split=["train", "test"], batch_size=-1, decoders=wanted)
        )
    return tuple(builder.info.features["label"].names), builder.info.full_name, train, test


def load_imagenet(config: config_dict.ConfigDict) -> PictureSource:
    """ImageNet's pictures, read by index from ArrayRecord files.

    Validation is the last 50,000 of train, which TFDS has shuffled; the public
    validation split is test.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if the set is missing, in another format or smaller than
        `train_examples`.
    """
    held_out = IMAGENET_VALIDATION_EXAMPLES
    parts = {
        "train": f"train[:-{held_out}]",
        "validation": f"train[-{held_out}:]",
        "test": "validation",
    }
    with _only_errors_logged():
        builder = _prepared(config, file_format="array_record")
        readers = {split: _by_index(builder, part) for split, part in parts.items()}
    examples, fetch = readers["train"]
    if config.train_examples > examples:
        raise InputError(
            f"data.train_examples must be between 0 (all) and {examples}, "
            f"got {config.train_examples}"
        )
    readers["train"] = config.train_examples or examples, fetch
    names = tuple(builder.info.features["label"].names)
    return PictureSource(names, IMAGENET_STATISTICS, builder.info.full_name, readers)


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """TFDS warns of what is reported as an error here, or does not matter."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _prepared(
    config: config_dict.ConfigDict, file_format: str | None = None
) -> "tfds.core.DatasetBuilder":
    """The builder of a set that is on the disk, downloaded if that is asked for."""
    with extra("data"):
        import tensorflow_datasets as tfds

    builder = tfds.builder(config.name, data_dir=config.data_dir or None)
    # TFDS would try for minutes to download without a network: only when told.
    if not builder.is_prepared():
        if not config.download:
            raise InputError(
                f"data set {config.name} must be prepared in {builder.data_dir}, found none; "
                "--config.data.download=True gets it, --config.data.data_dir looks elsewhere"
            )
        try:
            builder.download_and_prepare(file_format=file_format)
        # An AssertionError asks for files that only a user can get.
        except (OSError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"--config.data.download=True needs a network and room on the disk: fetching "
                f"{config.name} into {builder.data_dir} ended with {reason}"
            ) from error
    return builder


def _by_index(builder: "tfds.core.DatasetBuilder", part: str) -> tuple[int, Fetch]:
    """Number of examples of a part of a split, and their reader."""
    with extra("data"):
        import tensorflow_datasets as tfds

    try:
        source = builder.as_data_source(
            part, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise InputError(
            f"{builder.name} must be in the format array_record, which is read by index, got "
            f"{builder.info.file_format.value} in {builder.data_dir}; "
            "--config.data.download=True with another --config.data.data_dir prepares it"
        ) from error

    return len(source), lambda index: _parsed(source[index])


def _parsed(record: bytes) -> Encoded:
    """The picture in a serialised `tf.train.Example`."""
    feature = tf.train.Example.FromString(record).features.feature
    image, file_name = (feature[key].bytes_list.value[0] for key in ("image", "file_name"))
    name = file_name.decode(errors="backslashreplace")
    return Encoded(repr(name), feature["label"].int64_list.value[0], lambda: image)
