import dataclasses
import os
import threading

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hne_tf import data
from hne_tf.bin import evaluate, train
from hne_tf.data.augmentation import Augmentation
from hne_tf.data.encoded import Encoded, EncodedSplit
from hne_tf.data.pixels import Pixels, decode, read_bytes
from hne_tf.errors import InputError, raised_in_graph
from hne_tf.image_spec import ImageSpec
from hne_tf.training.config import default

AUGMENTED = {"flip": True, "color_jitter": 0.3, "random_resized_crop": 0.3, "central_crop": 0.875}


def load(folder, **settings):
    config = default().data
    config.update(name="image_folder", data_dir=str(folder), image_size=16, **settings)
    return data.load(config)


def batches_of(dataset, start_step=0, total_steps=6, **settings):
    batches = dataset.train_batches(
        batch_size=8, start_step=start_step, total_steps=total_steps, seed=5, **settings
    )
    return list(batches.as_numpy_iterator())


def assert_equal(got, expected):
    assert len(got) == len(expected) > 0
    for (images, labels), (expected_images, expected_labels) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_evaluation_equals_decoding_each_file(jpeg_folder):
    dataset = load(jpeg_folder, **AUGMENTED)
    pixels = Pixels(16, 16, central_crop=0.875)
    assert Pixels.of(dataset.spec) == pixels
    ((images, labels),) = dataset.evaluation_batches("test", 10).as_numpy_iterator()
    files = [jpeg_folder / "test" / name / f"{i}.jpg" for name in ("ant", "bee") for i in range(3)]
    expected = [pixels.image(decode(read_bytes(file))) for file in files]
    np.testing.assert_array_equal(images, expected)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_without_random_crops_training_sees_what_evaluation_sees(jpeg_folder):
    dataset = load(jpeg_folder, central_crop=0.5)
    trained_on = {image.tobytes() for images, _ in batches_of(dataset) for image in images}
    ((images, _),) = dataset.evaluation_batches("train", 20).as_numpy_iterator()
    assert trained_on == {image.tobytes() for image in images}
    random = batches_of(load(jpeg_folder, central_crop=0.5, random_resized_crop=0.1))
    assert not trained_on & {image.tobytes() for images, _ in random for image in images}


def test_training_resumes_exactly_with_all_augmentation(jpeg_folder):
    dataset = load(jpeg_folder, **AUGMENTED)
    whole = batches_of(dataset)
    assert_equal(batches_of(dataset, start_step=4), whole[4:])
    # Eighteen images in an epoch, all of them different each time.
    assert len({image.tobytes() for images, _ in whole for image in images}) == 48


@pytest.mark.parametrize("count", [2, 4])
def test_shards_are_the_parts_of_each_batch(jpeg_folder, count):
    dataset = load(jpeg_folder, **AUGMENTED)
    shards = [batches_of(dataset, 1, 3, shard=(index, count)) for index in range(count)]
    assert shards[0][0][0].shape == (8 // count, 16, 16, 3)
    joined = [
        tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
        for batches in zip(*shards, strict=True)
    ]
    assert_equal(joined, batches_of(dataset, 1, 3))


@pytest.fixture
def made_of():
    """Makes a data set of 40 examples whose pictures come from a function."""

    def make(read, **settings):
        split = EncodedSplit(
            40, lambda index: Encoded(f"'{index}'", index % 2, read), Pixels(4, 4), **settings
        )
        spec = ImageSpec((4, 4, 3), ("a", "b"), (0.0,) * 3, (1.0,) * 3)
        return data.DataSet("any", spec, dict.fromkeys(data.SPLITS, split))

    return make


def test_a_shard_is_all_that_is_read(made_of):
    read = []
    dataset = made_of(lambda: read.append(1) or b"", skip_corrupt=True)
    with pytest.raises(tf.errors.OpError, match="only corrupt ones"):
        list(
            dataset.train_batches(batch_size=20, start_step=0, total_steps=1, seed=0, shard=(1, 5))
        )
    assert len(read) == 4


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_bad_shards(jpeg_folder, shard):
    with pytest.raises(InputError, match="0 <= index < count, got"):
        batches_of(load(jpeg_folder), shard=shard)
    with pytest.raises(InputError, match="divide by the 3 shards, got 8"):
        batches_of(load(jpeg_folder), shard=(0, 3))


@pytest.fixture
def deterministic():
    from tensorflow.python.framework import config

    config.enable_op_determinism()
    yield
    config.disable_op_determinism()


@pytest.mark.parametrize("training", [False, True])
def test_pictures_and_batches_are_decoded_in_parallel_and_deterministic(
    made_of, encode, deterministic, training
):
    """Three readers wait for each other: of one batch of two, and of the next."""
    tf.keras.utils.set_random_seed(0)
    met = threading.Barrier(3)
    readers = []
    encoded = encode(Image.new("RGB", (4, 4), "red"), "PNG")

    def read():
        readers.append(1)
        if len(readers) <= 3:
            met.wait(timeout=60)
        return encoded

    dataset = made_of(read)
    if training:
        augmentation = Augmentation(pad_pixels=1, flip=True, color_jitter=0.5)
        dataset = dataclasses.replace(dataset, augmentation=augmentation)
        batches = dataset.train_batches(batch_size=2, start_step=0, total_steps=20, seed=0)
    else:
        batches = dataset.evaluation_batches("test", 2)
    labels = np.concatenate([labels for _, labels in batches.as_numpy_iterator()])
    assert sorted(labels) == [0] * 20 + [1] * 20
    assert not met.broken


def test_each_picture_is_read_once(made_of, encode):
    read = []
    encoded = encode(Image.new("RGB", (9, 9), "red"), "JPEG")
    dataset = made_of(lambda: read.append(1) or encoded)
    list(dataset.evaluation_batches("test", 16))
    assert len(read) == 40


def test_the_number_of_batches_is_known(made_of):
    assert made_of(bytes).evaluation_batches("test", 16).cardinality() == 3


# Corrupt pictures.


@pytest.fixture
def corrupt_folder(jpeg_folder):
    """A folder in which one JPEG for training and one to test end early."""
    for name in ("train/ant/4.jpg", "test/bee/1.jpg"):
        path = jpeg_folder / name
        path.write_bytes(path.read_bytes()[:300])
    return jpeg_folder


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_corrupt_picture_is_named(corrupt_folder, name):
    dataset = load(corrupt_folder)
    with pytest.raises(tf.errors.OpError) as error:
        list(dataset.evaluation_batches(name, 4))
    broken = {"train": "ant/4.jpg", "test": "bee/1.jpg"}[name]
    message = str(raised_in_graph(error.value))
    assert message.startswith(f"pictures must be sound, got '{corrupt_folder / name / broken}': ")
    assert "a picture must be sound, got OSError: " in message
    assert "--config.data.skip_corrupt=True" in message


def test_skipped_pictures_leave_batches_whole_and_exact(corrupt_folder):
    dataset = load(corrupt_folder, skip_corrupt=True, **AUGMENTED)
    whole = batches_of(dataset)
    assert {images.shape for images, _ in whole} == {(8, 16, 16, 3)}
    # No image is what stands for a corrupt one before it is replaced.
    assert all(images.any((1, 2, 3)).all() for images, _ in whole)
    assert dataset.skipped == [repr(str(corrupt_folder / "train/ant/4.jpg"))]
    assert_equal(batches_of(load(corrupt_folder, skip_corrupt=True, **AUGMENTED), 3), whole[3:])


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_evaluation_leaves_corrupt_pictures_out(corrupt_folder, batch_size):
    dataset = load(corrupt_folder, skip_corrupt=True)
    batches = list(dataset.evaluation_batches("test", batch_size).as_numpy_iterator())
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert all(len(images) == len(labels) > 0 for images, labels in batches)
    assert dataset.examples("test") == 6
    assert dataset.skipped == [repr(str(corrupt_folder / "test/bee/1.jpg"))]


def test_the_place_of_a_corrupt_picture_is_taken_by_a_sound_one(encode):
    sound = {index: encode(Image.new("RGB", (4, 4), (index, 0, 0)), "PNG") for index in (1, 3)}

    def fetch(index):
        return Encoded("abcd"[index], index, lambda: sound.get(index, b"junk"))

    split = EncodedSplit(9, fetch, Pixels(4, 4), skip_corrupt=True)
    draws = np.zeros((4, 10, 4), np.float32)
    images, labels = split.arrays(np.arange(4))
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == [1, 3]
    images, labels = split.arrays(np.arange(4), draws)
    assert labels.tolist() == images[:, 0, 0, 0].tolist() == [1, 1, 3, 3]
    assert split.skipped == {"a", "c"}
    with pytest.raises(
        InputError, match=r"needs a sound picture, got only corrupt ones: \['a', 'c'"
    ):
        split.arrays(np.array([0, 2]), draws)


@pytest.mark.parametrize("batch_size", [2, 40])
def test_a_split_without_a_sound_picture_is_one_clear_line(made_of, batch_size):
    dataset = made_of(lambda: b"junk", skip_corrupt=True)
    with pytest.raises(tf.errors.OpError) as error:
        list(dataset.evaluation_batches("test", batch_size))
    message = str(raised_in_graph(error.value))
    assert message.startswith("a split must have a sound picture, got 40 corrupt ones, the first: ")


# How a file that counts as a picture cannot be read, given the bytes of its path.
UNREADABLE = {
    "dangling.jpg": lambda path: os.symlink("nowhere.jpg", path),
    "circle.jpg": lambda path: os.symlink("circle.jpg", path),
    "pipe.jpg": os.mkfifo,
    "empty.jpg": os.mknod,
    # A line break, and bytes that are no text.
    "a\nb\udcff.jpg": os.mknod,
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_named_in_one_line_and_skipped_when_told(jpeg_folder, name):
    path = str(jpeg_folder / "test/ant" / name)
    UNREADABLE[name](os.fsencode(path))
    dataset = load(jpeg_folder)
    assert dataset.examples("test") == 7
    with pytest.raises(tf.errors.OpError) as error:
        list(dataset.evaluation_batches("test", 4))
    message = str(raised_in_graph(error.value))
    assert message.startswith(f"pictures must be sound, got {path!r}: a picture must be ")
    assert "--config.data.skip_corrupt=True" in message, "the message is whole"
    dataset = load(jpeg_folder, skip_corrupt=True)
    batches = dataset.evaluation_batches("test", 4).as_numpy_iterator()
    assert sum(len(labels) for _, labels in batches) == 6
    assert dataset.skipped == [repr(path)]


def settings_of(folder, workdir):
    settings = {
        "data.name": "image_folder", "data.data_dir": folder, "data.image_size": 8,
        "data.pad_pixels": 0, "model.branching": "(1, 2)", "model.resnet.unit": "basic",
        "model.resnet.widths": "(4, 8)", "model.resnet.units": "(1, 1)",
        "model.resnet.strides": "(1, 2)",
        "model.resnet.stem_width": 4, "training.epochs": 2.0, "training.batch_size": 6,
        "training.steps_per_call": 3, "optimizer.warmup_epochs": 0.5,
    }  # fmt: skip
    fields = [f"--config.{field}={value}" for field, value in settings.items()]
    return ["--config=configs/digits.py", f"--workdir={workdir}", *fields]


def test_binaries_stop_in_one_line_and_skip_when_told(
    corrupt_folder, tmp_path, run_binary, assert_refused
):
    workdir = tmp_path / "run"
    arguments = settings_of(corrupt_folder, workdir)
    assert_refused(train, arguments, "train/ant/4.jpg", "skip_corrupt=True")
    code, lines, _ = run_binary(train, *arguments, "--config.data.skip_corrupt=True")
    assert code == 0
    (line,) = (line for line in lines if "corrupt" in line)
    assert line.startswith("1 corrupt images were skipped, the first: ")
    assert "train/ant/4.jpg" in line
    code, lines, _ = run_binary(evaluate, f"--workdir={workdir}")
    assert code == 0
    assert any("5 examples (1 corrupt ones skipped)" in line for line in lines)
    # What is left to test on is no picture.
    for path in (corrupt_folder / "test").glob("*/*.jpg"):
        path.write_bytes(b"junk")
    assert_refused(evaluate, [f"--workdir={workdir}"], "a split must have a sound picture, got 6")
