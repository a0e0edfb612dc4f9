"""Data sets of TensorFlow Datasets, prepared on the disk."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging
from ml_collections import config_dict

from hne_tf.data.encoded import Encoded, Fetch
from hne_tf.data.source import IMAGENET_STATISTICS, ArraySource, PictureSource
from hne_tf.errors import InputError, extra, in_one_line
from hne_tf.image_spec import ImageSpec

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
    with _only_errors_logged():
        builder = _builder(config, config.name)
        _prepare(builder, config)
        train, test = _arrays(builder, ["train", "test"])
    return _class_names(builder), builder.info.full_name, train, test


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
        builder = _builder(config, config.name)
        _prepare(builder, config, "array_record")
        return _pictures(builder, parts, config.train_examples)


def load_any(config: config_dict.ConfigDict) -> ArraySource | PictureSource:
    """Any image classification set of TFDS: `tfds:food101`, `tfds:emnist/letters`.

    Images of one size are kept in memory and normalised by their own statistics, others are
    read by index from ArrayRecord files. Without a split `test`, `validation` is test;
    without another one for validation, that is the last tenth of train.

    Args:
      config: the `data` section of `hne_tf.training.config.default()`.

    Raises:
      InputError: if there is no such set, it is missing or cannot be downloaded, or it has
        no images with a label and a split for tests.
    """
    name = config.name.partition(":")[2]
    if not name:
        raise InputError(f"data.name must name a set of TFDS, tfds:food101, got {config.name!r}")
    with _only_errors_logged():
        builder = _builder(config, name)
        shape = _image_shape(builder)
        sized = None not in shape
        _prepare(builder, config, None if sized else "array_record")
        parts = _parts(builder)
        if not sized:
            return _pictures(builder, parts, config.train_examples)
        arrays = dict(zip(parts, _arrays(builder, list(parts.values())), strict=True))
    class_names = _class_names(builder)
    measured = ImageSpec.from_data(arrays["train"][0], class_names)
    statistics = measured.mean, measured.std
    return ArraySource(class_names, statistics, builder.info.full_name, arrays)


def _image_shape(builder: "tfds.core.DatasetBuilder") -> tuple[int | None, ...]:
    """Height, width and channels of a set's images; None where they differ.

    Raises:
      InputError: if it is no set of images with a label each.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    features = builder.info.features
    kinds = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    if not all(
        name in features and isinstance(features[name], kind) for name, kind in kinds.items()
    ):
        raise InputError(
            f"a set of TFDS must have the features image and label of classes, {builder.name} "
            f"has {', '.join(features)}"
        )
    image = features["image"]
    if np.dtype(image.np_dtype) != np.uint8:
        raise InputError(f"images must be of uint8, those of {builder.name} are {image.np_dtype}")
    return tuple(image.shape)


def _parts(builder: "tfds.core.DatasetBuilder") -> dict[str, str]:
    """What our splits are of those of a set.

    Raises:
      InputError: if it has not two of them.
    """
    splits = builder.info.splits
    test = "test" if "test" in splits else "validation"
    if "train" not in splits or test not in splits:
        raise InputError(
            f"a set of TFDS must have splits train and test or validation, {builder.name} has "
            f"{', '.join(splits)}"
        )
    if test == "test" and "validation" in splits:
        return {"train": "train", "validation": "validation", "test": test}
    return {"train": "train[:90%]", "validation": "train[90%:]", "test": test}


def _pictures(
    builder: "tfds.core.DatasetBuilder", parts: Mapping[str, str], train_examples: int
) -> PictureSource:
    """A set whose pictures are decoded when a batch needs them."""
    readers = {split: _by_index(builder, part) for split, part in parts.items()}
    examples, fetch = readers["train"]
    if train_examples > examples:
        raise InputError(
            f"data.train_examples must be between 0 (all) and {examples}, got {train_examples}"
        )
    readers["train"] = train_examples or examples, fetch
    return PictureSource(
        _class_names(builder), IMAGENET_STATISTICS, builder.info.full_name, readers
    )


def _class_names(builder: "tfds.core.DatasetBuilder") -> tuple[str, ...]:
    return tuple(builder.info.features["label"].names)


def _arrays(builder: "tfds.core.DatasetBuilder", parts: Sequence[str]) -> list[SplitArrays]:
    """Images and labels of parts of a set whose images have one size."""
    with extra("data"):
        import tensorflow_datasets as tfds

    wanted = tfds.decode.PartialDecoding({"image": True, "label": True})
    return [
        (split["image"].numpy(), split["label"].numpy())
        for split in builder.as_dataset(split=parts, batch_size=-1, decoders=wanted)
    ]


@contextlib.contextmanager
def _only_errors_logged() -> Iterator[None]:
    """TFDS warns of what is reported as an error here, or does not matter."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _builder(config: config_dict.ConfigDict, name: str) -> "tfds.core.DatasetBuilder":
    """What reads the set of a name.

    Raises:
      InputError: if TFDS has no such set.
    """
    with extra("data"):
        import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=config.data_dir or None)
    # Also of a name that is none.
    except ValueError as error:
        raise InputError(f"TFDS must have the set {name!r}: {in_one_line(error)}") from error


def _prepare(
    builder: "tfds.core.DatasetBuilder",
    config: config_dict.ConfigDict,
    file_format: str | None = None,
) -> None:
    """Has a set on the disk, downloaded if that is asked for."""
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

    return len(source), lambda index: _parsed(source[index], f"{part} {index}")


def _parsed(record: bytes, place: str) -> Encoded:
    """The picture in a serialised `tf.train.Example`, called by its file name or its place."""
    feature = tf.train.Example.FromString(record).features.feature
    (image,) = feature["image"].bytes_list.value
    (label,) = feature["label"].int64_list.value
    names = feature["file_name"].bytes_list.value if "file_name" in feature else ()
    name = names[0].decode(errors="backslashreplace") if names else place
    return Encoded(repr(name), label, lambda: image)
