import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec


def test_statistics_are_those_of_each_channel():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 2), np.uint8)
    images[..., 1] = 7
    spec = ImageSpec.from_data(images, ["cat", "dog"])
    assert spec.shape == (4, 3, 2)
    assert spec.class_names == ("cat", "dog")
    np.testing.assert_allclose(spec.mean, [images[..., 0].mean(), 7.0])
    np.testing.assert_allclose(spec.std, [images[..., 0].std(), 1.0])


@pytest.mark.parametrize(
    "images", [np.zeros([2, 4, 4, 1]), np.zeros([2, 4, 4], np.uint8), np.zeros([0, 4, 4, 1], "u1")]
)
def test_other_images_are_refused(images):
    with pytest.raises(InputError, match=r"uint8 of shape \[examples, height, width, channels\]"):
        ImageSpec.from_data(images, ["cat"])
