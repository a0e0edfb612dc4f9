from concurrent import futures

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data.arrays import augmentation
from hne_tf.data.arrays.batches import ArrayDataSet, Order
from hne_tf.data.augmentation import Augmentation
from hne_tf.data.data_set import ArraySplit
from hne_tf.data.encoded import Encoded, EncodedSplit
from hne_tf.data.pixels import Pixels
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec

SHAPE = (5, 7, 3)


@pytest.fixture
def data_set():
    """Makes a data set of 20 images for training and 7 for validation."""
    random = np.random.default_rng(0)

    def make(pixels=None, **settings):
        pixels = pixels or Pixels(*SHAPE)
        splits = {
            name: ArraySplit(
                random.integers(0, 256, (count, *SHAPE), np.uint8),
                np.arange(count, dtype=np.int32),
                pixels,
            )
            for name, count in (("train", 20), ("validation", 7))
        }
        spec = ImageSpec(pixels.shape, tuple(map(str, range(20))), (0.0,) * 3, (1.0,) * 3)
        return ArrayDataSet("test", spec, splits, Augmentation(**settings))

    return make


def batches(data, start, total, seed=3):
    return list(data.train_batches(batch_size=8, start_step=start, total_steps=total, seed=seed))


def test_every_example_comes_once_an_epoch_in_another_order(data_set):
    labels = np.concatenate([labels for _, labels in batches(data_set(), 0, 5)])
    epochs = labels.reshape(2, 20)
    assert [sorted(epoch) for epoch in epochs] == [list(range(20))] * 2
    assert (epochs[0] != epochs[1]).any()
    other = np.concatenate([labels for _, labels in batches(data_set(), 0, 5, seed=4)])
    assert (other != labels).any()


def test_batches_are_a_function_of_seed_and_step(data_set):
    data = data_set(pad_pixels=1, flip=True, color_jitter=0.2)
    whole, rest = batches(data, 0, 300), batches(data, 250, 300)
    assert len(whole) == 300
    for one, other in zip(whole[250:], rest, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    images, labels = whole[0]
    assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (8, *SHAPE), np.int32)


@pytest.mark.parametrize(("bytes_ahead", "made"), [(3 * 8 * 5 * 7 * 3, 3), (1, 2), (2**28, 20)])
def test_batches_ahead_take_no_more_memory_than_allowed(data_set, monkeypatch, bytes_ahead, made):
    monkeypatch.setattr("hne_tf.data.arrays.batches._BYTES_AHEAD", bytes_ahead)
    pools = []
    submit = futures.ThreadPoolExecutor.submit
    monkeypatch.setattr(
        futures.ThreadPoolExecutor, "submit", lambda *given: pools.append(1) or submit(*given)
    )
    coming = data_set().train_batches(batch_size=8, start_step=0, total_steps=20, seed=3)
    next(coming)
    assert len(pools) == made
    coming.close()


def test_an_order_goes_on_from_any_step():
    order = Order(7, seed=1)
    stream = np.concatenate([order(step, 3) for step in range(14)])
    np.testing.assert_array_equal(order(2, 6), stream[12:18])


def test_crops_and_flips_are_those_of_tensorflow():
    settings = Augmentation(pad_pixels=2, flip=True)
    images = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)
    draws = augmentation.draw(settings, 20, seed=1, step=2)
    assert set(np.unique(draws.offsets)) == set(range(5))
    assert set(np.unique(draws.flips)) == {0, 1}
    expected = settings.apply(tf.constant(images), draws).numpy()
    np.testing.assert_array_equal(augmentation.apply(settings, images, draws), expected)


def test_nothing_unasked_is_done():
    images = np.random.default_rng(0).integers(0, 256, (20, *SHAPE), np.uint8)
    for settings in (Augmentation(), Augmentation(pad_pixels=1)):
        draws = augmentation.draw(settings, 20, seed=1, step=2)
        assert not draws.flips.any()
    draws = augmentation.draw(Augmentation(), 20, seed=1, step=2)
    np.testing.assert_array_equal(augmentation.apply(Augmentation(), images, draws), images)


def test_colours_change_as_those_of_tensorflow(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
    settings = Augmentation(color_jitter=0.3)

    class Fixed:
        def uniform(self, low, high, size=None):
            return np.array([1.2, 0.8]) if size else 0.1

    draws = augmentation.draw(settings, 1, seed=0, step=0)
    monkeypatch.setattr(np.random, "default_rng", lambda seed: Fixed())
    changed = augmentation.apply(settings, image, draws)[0]
    expected = tf.image.convert_image_dtype(image[0], tf.float32)
    expected = tf.image.adjust_saturation(expected, 1.2)
    expected = tf.image.adjust_contrast(expected, 0.8)
    expected = tf.image.adjust_brightness(expected, 0.1)
    expected = tf.image.convert_image_dtype(expected, tf.uint8, saturate=True).numpy()
    np.testing.assert_allclose(changed.astype(int), expected.astype(int), atol=1)


def test_evaluation_goes_through_a_split_once_in_order(data_set):
    data = data_set(pad_pixels=1)
    found = list(data.evaluation_batches("validation", 3))
    assert [len(labels) for _, labels in found] == [3, 3, 1]
    images = np.concatenate([images for images, _ in found])
    np.testing.assert_array_equal(images, data.splits["validation"].images)


def test_images_are_resized_to_the_input(data_set):
    data = data_set(Pixels(4, 4, 3))
    images, _ = next(data.evaluation_batches("train", 2))
    expected = data.splits["train"].pixels.images(data.splits["train"].images[:2])
    np.testing.assert_array_equal(images, expected)


def test_encoded_pictures_are_decoded(smooth_picture, encode):
    pictures = [encode(smooth_picture(seed)) for seed in range(4)]
    split = EncodedSplit(
        4,
        lambda index: Encoded(str(index), index, lambda: pictures[index]),
        Pixels(8, 8),
        random_resized_crop=0.5,
    )
    spec = ImageSpec((8, 8, 3), tuple("0123"), (0.0,) * 3, (1.0,) * 3)
    data = ArrayDataSet("test", spec, {"train": split})
    (images, labels), _ = data.train_batches(batch_size=4, start_step=0, total_steps=2, seed=0)
    assert images.shape == (4, 8, 8, 3)
    assert sorted(labels) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"start_step": -1}, "start_step must be at least 0, got -1"),
        ({"total_steps": -1}, "total_steps must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(data_set, settings, message):
    given = {"batch_size": 8, "start_step": 0, "total_steps": 1, "seed": 0, **settings}
    with pytest.raises(InputError, match=message):
        data_set().train_batches(**given)
