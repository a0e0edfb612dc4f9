import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data.augmentation import Augmentation, jitter_colors
from hne_tf.errors import InputError

SEED = tf.constant([3, 4], tf.int64)


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
