import os

import numpy as np
import pytest
from PIL import Image

from hne_tf import data
from hne_tf.data.sets import tfds_sets
from hne_tf.errors import InputError


def test_digits(load):
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


def test_train_examples_is_a_fixed_stratified_subset(load):
    first, second = (load(train_examples=100) for _ in range(2))
    assert [first.examples(split) for split in data.SPLITS] == [100, 180, 360]
    (images, labels), (same, _) = (
        next(dataset.evaluation_batches("train", 100).as_numpy_iterator())
        for dataset in (first, second)
    )
    np.testing.assert_array_equal(images, same)
    assert set(np.bincount(labels)) <= {9, 10, 11}
    assert load(train_examples=1257).examples("train") == 1257


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_validation_is_the_last_5000_of_train(load, name, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5040, 32, 32, 3), np.uint8)
    labels = np.arange(5040) % 4
    arrays = tuple("abcd"), "cifar/1.0.0", (images, labels), (images[:8], labels[:8])
    monkeypatch.setattr(tfds_sets, "read_arrays", lambda config: arrays)
    dataset = load(name=name, train_examples=20)
    assert [dataset.examples(split) for split in data.SPLITS] == [20, 5000, 8]
    got, _ = next(dataset.evaluation_batches("validation", 5000).as_numpy_iterator())
    np.testing.assert_array_equal(got, images[40:])


def test_missing_set_is_not_downloaded(load, tmp_path):
    with pytest.raises(InputError) as error:
        load(name="cifar100", data_dir=str(tmp_path))
    message = str(error.value)
    assert "\n" not in message
    for part in ("cifar100", str(tmp_path), "--config.data.download=True"):
        assert part in message


def test_failed_download_is_one_line(load, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **settings):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(InputError, match=r"cifar100 into .* no route to host$"):
        load(name="cifar100", data_dir=str(tmp_path), download=True)


def test_sets_in_memory_are_resized_as_pillow_does_before_augmentation(
    load, batches_of, monkeypatch
):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (5040, 4, 4, 3), np.uint8)
    images = np.asarray([Image.fromarray(image).resize((32, 32)) for image in small])
    labels = np.arange(5040) % 4
    arrays = tuple("abcd"), "cifar/1.0.0", (images, labels), (images[:8], labels[:8])
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


def test_digits_are_resized_too(load):
    dataset = load(image_size=32)
    assert dataset.spec.shape == (32, 32, 1)
    got, _ = next(dataset.evaluation_batches("test", 5).as_numpy_iterator())
    assert got.shape == (5, 32, 32, 1)


@pytest.mark.skipif("HNE_TFDS_DIR" not in os.environ, reason="HNE_TFDS_DIR holds no CIFAR-10")
def test_real_cifar10(load, batches_of):
    dataset = load(name="cifar10", data_dir=os.environ["HNE_TFDS_DIR"], pad_pixels=4, flip=True)
    assert [dataset.examples(split) for split in data.SPLITS] == [45000, 5000, 10000]
    assert dataset.spec.class_names[:2] == ("airplane", "automobile")
    images, labels = next(dataset.evaluation_batches("train", 45000).as_numpy_iterator())
    np.testing.assert_allclose(images.mean((0, 1, 2)), dataset.spec.mean, atol=0.01)
    np.testing.assert_allclose(images.std((0, 1, 2)), dataset.spec.std, atol=0.01)
    assert len(np.bincount(labels)) == 10
    assert batches_of(dataset, 5, 6)[0][0].shape == (16, 32, 32, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mnist"}, "one of digits, cifar10, .* or an import path .* got 'mnist'"),
        ({"pad_pixels": -1}, "data.pad_pixels must be at least 0, got -1"),
        ({"pad_pixels": 8}, "pad_pixels must be less than the 8 pixels of a side .* got 8"),
        ({"image_size": -1}, "data.image_size must be at least 0, got -1"),
        ({"central_crop": 0.5}, "central_crop is for encoded pictures .* 0 for digits, got 0.5"),
        ({"color_jitter": 0.4}, "color_jitter is for coloured images .* 0 for digits, got 0.4"),
        ({"name": "image_folder", "image_size": 8}, "data.data_dir must name"),
        (
            {"name": "image_folder", "data_dir": "/no/such", "image_size": 8},
            "must be a readable folder, got '/no/such': No such file",
        ),
        ({"train_examples": -1}, "at least 0, got -1"),
        ({"train_examples": 5}, "between 10 and 1247, .* got 5"),
        ({"train_examples": 1258}, "0 or 1257 .* got 1258"),
    ],
)
def test_bad_settings(load, settings, message):
    with pytest.raises(InputError, match=message):
        load(**settings)


def test_a_set_of_ones_own_is_named_by_its_import_path(load, tmp_path, monkeypatch):
    (tmp_path / "my_squares.py").write_text(
        "import numpy as np\n"
        "from hne_tf.data.source import ArraySource\n"
        "def load(config):\n"
        "    images, labels = np.zeros([20, 6, 6, 1], np.uint8), np.arange(20) % 2\n"
        "    arrays = dict.fromkeys(('train', 'validation', 'test'), (images, labels))\n"
        "    return ArraySource(('a', 'b'), ((0.0,), (1.0,)), 'squares/1', arrays)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    dataset = load(name="my_squares:load", image_size=8)
    assert dataset.spec.shape == (8, 8, 1)
    assert dataset.record.fingerprint == "squares/1"
    assert dataset.examples("test") == 20
    for name, reason in (
        ("my_squares:store", "a function of my_squares"),
        ("no_such_module:load", "a module that can be imported"),
        ("squares", r"one of digits, .* or an import path"),
    ):
        with pytest.raises(InputError, match=reason):
            load(name=name)
