import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data.augmentation import Augmentation, crop_and_flip, jitter_colors
from hne_tf.errors import InputError

SEED = tf.constant([3, 4], tf.int64)


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


def test_colours_change_within_their_range(smooth_picture):
    image = np.asarray(smooth_picture(0))
    images = [
        jitter_colors(tf.constant(image), 0.2, tf.constant([1, i], tf.int64)).numpy()
        for i in range(50)
    ]
    means = np.array([each.mean() for each in images]) - image.mean()
    assert np.abs(means).max() < 0.2 * 255 + 5
    assert means.min() < -20
    assert means.max() > 20
    spreads = np.array([each.std() for each in images]) / image.std()
    assert spreads.min() < 0.9
    assert spreads.max() > 1.02
    # Where a pixel is dark and where it is bright stays as it was.
    assert np.corrcoef(images[0].mean(-1).ravel(), image.mean(-1).ravel())[0, 1] > 0.95


def test_each_image_has_colours_of_its_own(smooth_picture):
    images = tf.repeat(tf.constant(np.asarray(smooth_picture(0)))[None], 8, axis=0)
    jitter = Augmentation(color_jitter=0.3)
    draws = jitter.draw(8, SEED)
    got = jitter.apply(images, draws).numpy()
    assert len({image.tobytes() for image in got}) == 8
    np.testing.assert_array_equal(got, jitter.apply(images, jitter.draw(8, SEED)))
    np.testing.assert_array_equal(got[2], jitter_colors(images[2], 0.3, draws.colors[2]))


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_colour_jitter_lies_below_1(value):
    with pytest.raises(InputError, match=rf"color_jitter must lie in \[0, 1\), got {value}"):
        Augmentation(color_jitter=value)
