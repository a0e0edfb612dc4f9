import os
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hne_tf import data
from hne_tf.config import default
from hne_tf.data import pipeline, tfds_sets
from hne_tf.data.augmentation import Augmentation, crop_and_flip
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec


def load(**settings):
    config = default().data
    config.update(settings)
    return data.load(config)


def in_memory_set(examples):
    """A set of 1x1 images, each example's pixel its index and its label too."""
    indices = np.arange(examples)
    images = tf.constant(indices.reshape(-1, 1, 1, 1), tf.uint8)
    split = data.Split(tf.constant(indices, tf.int32), lambda i: tf.gather(images, i))
    return data.DataSet(
        name="numbered",
        spec=ImageSpec((1, 1, 1), tuple(map(str, indices)), (0.0,), (1.0,)),
        splits=dict.fromkeys(data.SPLITS, split),
    )


def batches_of(dataset, start_step, total_steps, *, batch_size=16, seed=3):
    return list(
        dataset.train_batches(
            batch_size=batch_size, start_step=start_step, total_steps=total_steps, seed=seed
        ).as_numpy_iterator()
    )


def labels_of(batches):
    return np.concatenate([labels for _, labels in batches])


def write_image(path, colour, size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes of a dozen training images and two test images each."""
    for split, count in (("train", 12), ("test", 2)):
        for red, name in ((200, "ant"), (40, "bee")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i:02}.png", (red, i, 0))
    return tmp_path


# Order.


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2), (100, 9)])
def test_every_example_comes_once_per_epoch(examples, batch_size):
    steps = -(-4 * examples // batch_size)
    labels = labels_of(batches_of(in_memory_set(examples), 0, steps, batch_size=batch_size))
    epochs = labels[: 4 * examples].reshape(4, examples)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(examples), (4, 1)))
    if examples > 3:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_images_and_labels_stay_together():
    for images, labels in batches_of(in_memory_set(10), 0, 5):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_order_depends_on_the_seed_only():
    dataset = in_memory_set(50)
    first, again, other = (labels_of(batches_of(dataset, 0, 3, seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("start_step", [0, 1, 7, 11, 12])
def test_resumed_batches_equal_uninterrupted_ones(start_step):
    dataset = load(pad_pixels=2, flip=True, train_examples=50)
    whole = batches_of(dataset, 0, 12)
    resumed = batches_of(dataset, start_step, 12)
    assert len(resumed) == 12 - start_step
    for expected, got in zip(whole[start_step:], resumed, strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_order_late_in_a_long_run_is_still_a_permutation():
    steps = tf.range(2**40, 2**40 + 10, dtype=tf.int64)
    indices = [pipeline.shuffled_indices(step, 10, 100, seed=-5) for step in steps]
    first = (2**40 * 10) % 100
    whole = np.concatenate(indices)[: 100 - first]
    assert len(set(whole)) == len(whole)
    assert set(whole) <= set(range(100))


# Augmentation.


def test_crop_and_flip_equals_numpy_per_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 5, 7, 3), np.uint8)
    offsets = rng.integers(0, 5, (20, 2), np.int32)
    flips = rng.integers(0, 2, 20, np.int32)
    expected = []
    for image, (top, left), flip in zip(images, offsets, flips, strict=True):
        crop = np.pad(image, ((2, 2), (2, 2), (0, 0)))[top : top + 5, left : left + 7]
        expected.append(crop[:, ::-1] if flip else crop)
    got = crop_and_flip(tf.constant(images), 2, offsets, flips)
    np.testing.assert_array_equal(got, expected)


def test_flip_alone_mirrors_about_half_of_the_images():
    images = np.random.default_rng(0).integers(0, 256, (400, 4, 4, 1), np.uint8)
    flip = Augmentation(flip=True)
    got = flip.apply(tf.constant(images), flip.draw(400, tf.constant([1, 2], tf.int64))).numpy()
    kept = (got == images).all((1, 2, 3))
    mirrored = (got == images[:, :, ::-1]).all((1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_crops_use_every_offset_and_never_flip_unasked():
    image = np.random.default_rng(0).integers(1, 256, (1, 4, 4, 1), np.uint8)
    images = tf.repeat(tf.constant(image), 500, axis=0)
    crop = Augmentation(pad_pixels=1)
    got = crop.apply(images, crop.draw(500, tf.constant([1, 2], tf.int64))).numpy()
    padded = np.pad(image[0], ((1, 1), (1, 1), (0, 0)))
    crops = {padded[t : t + 4, left : left + 4].tobytes() for t in range(3) for left in range(3)}
    assert {image.tobytes() for image in got} == crops


def test_no_augmentation_leaves_training_images_alone():
    dataset = load()
    train = {
        (image.tobytes(), label)
        for images, labels in dataset.evaluation_batches("train", 500).as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    }
    for images, labels in batches_of(dataset, 0, 4):
        assert {(i.tobytes(), k) for i, k in zip(images, labels, strict=True)} <= train


# Evaluation.


@pytest.mark.parametrize("split", data.SPLITS)
def test_evaluation_covers_a_split_in_order_without_augmentation(split):
    plain, augmented = load(), load(pad_pixels=2, flip=True)
    batches = list(augmented.evaluation_batches(split, 100).as_numpy_iterator())
    sizes = [len(labels) for _, labels in batches]
    assert sum(sizes) == augmented.examples(split)
    assert set(sizes[:-1]) <= {100}
    (images, labels), *rest = plain.evaluation_batches(split, 2000).as_numpy_iterator()
    assert not rest
    np.testing.assert_array_equal(np.concatenate([i for i, _ in batches]), images)
    np.testing.assert_array_equal(np.concatenate([k for _, k in batches]), labels)


# Digits.


def test_digits():
    dataset = load()
    assert dataset.spec.shape == (8, 8, 1)
    assert dataset.spec.class_names == tuple("0123456789")
    assert [dataset.examples(split) for split in data.SPLITS] == [1257, 180, 360]
    seen = set()
    for split in data.SPLITS:
        images, labels = next(dataset.evaluation_batches(split, 2000).as_numpy_iterator())
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert (images.min(), images.max()) == (0, 255)
        share = np.bincount(labels, minlength=10) / len(labels)
        np.testing.assert_allclose(share, 0.1, atol=0.01)
        seen |= {image.tobytes() for image in images}
    assert len(seen) == 1797  # no two digits are equal, so no split shares any
    images, _ = next(dataset.evaluation_batches("train", 2000).as_numpy_iterator())
    np.testing.assert_allclose(images.mean(), dataset.spec.mean, atol=0.01)
    np.testing.assert_allclose(images.std(), dataset.spec.std, atol=0.01)


def test_train_examples_is_a_fixed_stratified_subset():
    first, second = (load(train_examples=100) for _ in range(2))
    assert [first.examples(split) for split in data.SPLITS] == [100, 180, 360]
    (images, labels), (same, _) = (
        next(dataset.evaluation_batches("train", 100).as_numpy_iterator())
        for dataset in (first, second)
    )
    np.testing.assert_array_equal(images, same)
    assert set(np.bincount(labels)) <= {9, 10, 11}
    assert load(train_examples=1257).examples("train") == 1257


# CIFAR.


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_validation_is_the_last_5000_of_train(name, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5040, 32, 32, 3), np.uint8)
    labels = np.arange(5040) % 4
    arrays = tuple("abcd"), (images, labels), (images[:8], labels[:8])
    monkeypatch.setattr(tfds_sets, "read_arrays", lambda config: arrays)
    dataset = load(name=name, train_examples=20)
    assert [dataset.examples(split) for split in data.SPLITS] == [20, 5000, 8]
    got, _ = next(dataset.evaluation_batches("validation", 5000).as_numpy_iterator())
    np.testing.assert_array_equal(got, images[40:])


def test_missing_set_is_not_downloaded(tmp_path):
    with pytest.raises(InputError) as error:
        load(name="cifar100", data_dir=str(tmp_path))
    message = str(error.value)
    assert "\n" not in message
    for part in ("cifar100", str(tmp_path), "--config.data.download=True"):
        assert part in message


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **settings):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(InputError, match=r"cifar100 into .* no route to host$"):
        load(name="cifar100", data_dir=str(tmp_path), download=True)


def test_sets_in_memory_are_resized_as_pillow_does_before_augmentation(monkeypatch):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5040, 4, 4, 3), np.uint8)
    images = np.asarray([Image.fromarray(image).resize((32, 32)) for image in small])
    labels = np.arange(5040) % 4
    arrays = tuple("abcd"), (images, labels), (images[:8], labels[:8])
    monkeypatch.setattr(tfds_sets, "read_arrays", lambda config: arrays)
    for size in (64, 12):
        dataset = load(name="cifar10", image_size=size)
        assert dataset.spec.shape == (size, size, 3)
        got, _ = next(dataset.evaluation_batches("test", 8).as_numpy_iterator())
        resized = [Image.fromarray(i).resize((size, size), Image.BILINEAR) for i in images[:8]]
        np.testing.assert_allclose(got, np.asarray(resized, int), atol=2)
    # A black margin of so many pixels of the resized picture.
    dataset = load(name="cifar10", image_size=64, pad_pixels=60, train_examples=8)
    ((got, _),) = batches_of(dataset, 0, 1, batch_size=16)
    assert got.shape == (16, 64, 64, 3)
    black = (got == 0).all(axis=(2, 3)).sum(axis=1)
    assert 32 < black.max() <= 60


def test_digits_are_resized_too():
    dataset = load(image_size=32)
    assert dataset.spec.shape == (32, 32, 1)
    got, _ = next(dataset.evaluation_batches("test", 5).as_numpy_iterator())
    assert got.shape == (5, 32, 32, 1)


@pytest.mark.skipif("HNE_TFDS_DIR" not in os.environ, reason="HNE_TFDS_DIR holds no CIFAR-10")
def test_real_cifar10():
    dataset = load(name="cifar10", data_dir=os.environ["HNE_TFDS_DIR"], pad_pixels=4, flip=True)
    assert [dataset.examples(split) for split in data.SPLITS] == [45000, 5000, 10000]
    assert dataset.spec.class_names[:2] == ("airplane", "automobile")
    images, labels = next(dataset.evaluation_batches("train", 45000).as_numpy_iterator())
    np.testing.assert_allclose(images.mean((0, 1, 2)), dataset.spec.mean, atol=0.01)
    np.testing.assert_allclose(images.std((0, 1, 2)), dataset.spec.std, atol=0.01)
    assert len(np.bincount(labels)) == 10
    assert batches_of(dataset, 5, 6)[0][0].shape == (16, 32, 32, 3)


# Folders of images.


def test_image_folder_holds_out_every_tenth_file_of_a_class(folder):
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    assert dataset.spec.class_names == ("ant", "bee")
    assert dataset.spec.shape == (4, 4, 3)
    assert [dataset.examples(split) for split in data.SPLITS] == [20, 4, 4]
    images, labels = next(dataset.evaluation_batches("validation", 9).as_numpy_iterator())
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    colours = [(200, 1, 0), (200, 11, 0), (40, 1, 0), (40, 11, 0)]
    np.testing.assert_array_equal(images, np.tile(np.reshape(colours, (4, 1, 1, 3)), (4, 4, 1)))


def test_image_folder_takes_its_own_validation_and_a_subset(folder):
    for name in ("ant", "bee"):
        write_image(folder / "validation" / name / "0.png", (9, 9, 9))
    settings = {"name": "image_folder", "data_dir": str(folder), "image_size": 4}
    whole, part = load(**settings), load(**settings, train_examples=6)
    assert [whole.examples(split) for split in data.SPLITS] == [24, 2, 4]
    assert [part.examples(split) for split in data.SPLITS] == [6, 2, 4]


def test_image_folder_batches_hold_each_image_once_and_resume(folder):
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4, pad_pixels=1, flip=True)
    whole = batches_of(dataset, 0, 5, batch_size=8)
    assert np.bincount(labels_of(whole)).tolist() == [20, 20]
    for expected, got in zip(whole[3:], batches_of(dataset, 3, 5, batch_size=8), strict=True):
        np.testing.assert_array_equal(got[0], expected[0])


def test_image_folder_reads_formats_and_modes_and_skips_other_files(folder):
    classes = folder / "test" / "ant"
    write_image(classes / "02.JPEG", (10, 20, 30), quality=95)
    write_image(classes / "03.jpg", 99, mode="L", quality=95)
    write_image(classes / "04.png", (10, 20, 30, 255), mode="RGBA")
    write_image(
        classes / "05.gif", 0, mode="P", save_all=True, append_images=[Image.new("P", (6, 4))]
    )
    (classes / "notes.txt").write_text("not an image")
    (folder / "test" / ".cache").mkdir()
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    images, labels = next(dataset.evaluation_batches("test", 20).as_numpy_iterator())
    assert labels.tolist() == [0] * 6 + [1] * 2
    expected = [(10, 20, 30), (99, 99, 99), (10, 20, 30), (0, 0, 0)]
    np.testing.assert_allclose(images[2:6, 0, 0], expected, atol=2)


def test_images_are_resized_as_pillow_does(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((40, 30))
    for split in ("train", "test"):
        for i in range(2):
            (tmp_path / split / "ant").mkdir(parents=True, exist_ok=True)
            smooth.save(tmp_path / split / "ant" / f"{i}.png")
    dataset = load(name="image_folder", data_dir=str(tmp_path), image_size=12)
    images, _ = next(dataset.evaluation_batches("test", 1).as_numpy_iterator())
    expected = np.asarray(smooth.resize((12, 12), Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(images[0], expected, atol=2)


# Errors.


def test_bad_layouts_of_an_image_folder(folder):
    def message():
        with pytest.raises(InputError) as error:
            load(name="image_folder", data_dir=str(folder), image_size=4)
        assert "\n" not in str(error.value)
        return str(error.value)

    (folder / "test" / "bee").rename(folder / "test" / "cow")
    assert "missing ['bee'], extra ['cow']" in message()
    (folder / "test" / "cow").rename(folder / "test" / "bee")
    (folder / "test").rename(folder / "elsewhere")
    assert f"{folder / 'test'}/<class>/" in message()
    (folder / "train" / "void").mkdir()
    assert "got no image in void" in message()
    (folder / "train").rename(folder / "old")
    (folder / "train").mkdir()
    assert "got no image in any class" in message()


def test_one_image_per_class_leaves_no_validation(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "ant" / "0.png", (1, 2, 3))
    with pytest.raises(InputError, match="at least two training images"):
        load(name="image_folder", data_dir=str(tmp_path), image_size=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mnist"}, "digits, cifar10, cifar100, imagenet2012, image_folder, got 'mnist'"),
        ({"pad_pixels": -1}, "data.pad_pixels must be at least 0, got -1"),
        ({"image_size": -1}, "data.image_size of digits must be at least 0, got -1"),
        ({"central_crop": 0.5}, "central_crop is for imagenet2012 and image_folder .* got 0.5"),
        ({"color_jitter": 0.4}, "color_jitter is for coloured images .* 0 for digits, got 0.4"),
        ({"name": "image_folder", "data_dir": "x"}, "image_size .* at least 1, got 0"),
        ({"name": "image_folder", "image_size": 8}, "data.data_dir must name"),
        (
            {"name": "image_folder", "data_dir": "/no/such", "image_size": 8},
            "/no/such/train/<class>/ .* got no such folder",
        ),
        ({"train_examples": -1}, "at least 0, got -1"),
        ({"train_examples": 5}, "between 10 and 1247, .* got 5"),
        ({"train_examples": 1258}, "0 or 1257 .* got 1258"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        load(**settings)


def test_bad_arguments_of_batches():
    dataset = in_memory_set(4)
    for ask in (dataset.examples, lambda split: dataset.evaluation_batches(split, 1)):
        with pytest.raises(InputError, match="train, validation, test, got 'dev'"):
            ask("dev")
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        dataset.evaluation_batches("test", 0)
    with pytest.raises(InputError, match="start_step must be at least 0, got -1"):
        batches_of(dataset, -1, 2)


# Distribution.


def test_replicas_share_each_batch():
    """Two replicas see the halves of every batch; needs a process of its own."""
    program = """
        import tensorflow as tf
        from hne_tf import data
        from hne_tf.config import default

        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        config = default().data
        config.update(pad_pixels=1, flip=True)
        dataset = data.load(config)
        batches = dataset.train_batches(batch_size=8, start_step=2, total_steps=5, seed=1)
        shared = strategy.experimental_distribute_dataset(batches)
        assert shared.element_spec[0]._component_specs[0].shape == (4, 8, 8, 1), shared.element_spec
        steps = 0
        for (images, labels), (whole, whole_labels) in zip(shared, batches):
            halves = tf.concat(strategy.experimental_local_results(images), 0)
            tf.debugging.assert_equal(halves, whole)
            halves = tf.concat(strategy.experimental_local_results(labels), 0)
            tf.debugging.assert_equal(halves, whole_labels)
            steps += 1
        assert steps == 3
    """
    root = pathlib.Path(data.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=root,
        timeout=120,
    )
