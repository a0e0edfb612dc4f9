import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from hne_tf.data.decoding import Crops, attempt, decode
from hne_tf.errors import InputError


def window_of(crops, size, seed):
    window = crops._random_window(tf.constant(size), tf.constant(seed, tf.int64))
    return window.numpy()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_only_the_window_is_kept(kind, smooth_picture, encode):
    # With colours at full resolution, which are else interpolated over the edge of the window.
    encoded = encode(smooth_picture(0), kind, subsampling=0)
    got = decode(tf.constant(encoded), lambda size: tf.constant([3, 10, 16, 16]), 16)
    whole = tf.io.decode_image(encoded).numpy()
    np.testing.assert_array_equal(got, whole[3:19, 10:26])


def test_evaluation_is_resize_256_crop_224(smooth_picture, encode):
    """Cropping first and resizing once is resizing first, but for what lies across the edge."""
    picture = smooth_picture(1, 320, 256)
    crops = Crops(28, central_crop=224 / 256)
    got = crops.evaluated(tf.constant(encode(picture, "PNG"))).numpy()
    resized = picture.resize((40, 32), Image.Resampling.BILINEAR)
    difference = np.abs(got - np.asarray(resized.crop((6, 2, 34, 30)), int))
    assert difference[1:-1, 1:-1].max() <= 1
    assert difference.max() <= 5


def test_training_windows_keep_area_and_aspect():
    crops = Crops(8, random_resized_crop=0.25)
    windows = np.array([window_of(crops, (300, 400), (1, i)) for i in range(300)])
    tops, lefts, heights, widths = windows.T
    assert ((tops >= 0) & (lefts >= 0)).all()
    assert ((tops + heights <= 300) & (lefts + widths <= 400)).all()
    areas, aspects = heights * widths / (300 * 400), widths / heights
    assert 0.24 < areas.min() < 0.35
    assert areas.max() > 0.8
    assert 0.74 < aspects.min() < 0.8
    assert 1.25 < aspects.max() < 1.34
    assert len({tuple(window) for window in windows}) > 290
    np.testing.assert_array_equal(windows[7], window_of(crops, (300, 400), (1, 7)))


def test_without_random_crops_training_sees_what_evaluation_sees(smooth_picture, encode):
    encoded, seed = tf.constant(encode(smooth_picture(2))), tf.constant([1, 2], tf.int64)
    plain = Crops(16, central_crop=0.5)
    np.testing.assert_array_equal(plain.trained_on(encoded, seed), plain.evaluated(encoded))
    random = Crops(16, random_resized_crop=0.1, central_crop=0.5)
    assert (random.trained_on(encoded, seed) != plain.evaluated(encoded)).numpy().any()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_become_rgb(mode, smooth_picture, encode):
    picture = smooth_picture(3).convert(mode)
    got = Crops(30, central_crop=1.0).evaluated(tf.constant(encode(picture, quality=95)))
    expected = np.asarray(picture.convert("RGB").crop((5, 0, 35, 30)), int)
    assert np.abs(got.numpy() - expected).mean() < 4


def test_attempts(smooth_picture, encode):
    """A picture cut short, one of noise, and none at all are corrupt; the next is not."""
    encoded = encode(smooth_picture(4, 200, 200))
    spec = tf.TensorSpec([8, 8, 3], tf.uint8)
    crops = Crops(8)

    @tf.function
    def read(data):
        return attempt(lambda: crops.evaluated(data), spec)

    noise = bytes(np.random.default_rng(0).integers(0, 256, 500, np.uint8))
    for corrupt in (encoded[: len(encoded) // 2], encoded[:3] + noise, noise, b""):
        image, sound = read(tf.constant(corrupt))
        assert not sound
        assert not image.numpy().any()
    image, sound = read(tf.constant(encoded))
    assert sound
    np.testing.assert_array_equal(image, crops.evaluated(tf.constant(encoded)))


@pytest.mark.parametrize("field", ["random_resized_crop", "central_crop"])
def test_shares_lie_between_0_and_1(field):
    for value in (-0.1, 1.5):
        with pytest.raises(InputError, match=rf"data.{field} must lie in \[0, 1\], got {value}"):
            Crops(8, **{field: value})
