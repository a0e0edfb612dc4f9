import keras
import numpy as np
import pytest
from keras import layers

from hne_tf.errors import InputError
from hne_tf.models.functional import preprocessing

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("MobileNetV2", "mobilenet_v2"),
        ("EfficientNetV2B0", "efficientnet_v2"),
        ("DenseNet121", "densenet"),
        ("ResNet50", "resnet"),
    ],
)
def test_images_are_what_the_family_makes_of_them(name, family):
    mean, std, is_reversed = preprocessing.normalisation(f"keras.applications.{name}")
    normalised = (PIXELS - mean) / std
    if is_reversed:
        normalised = normalised[..., ::-1]
    expected = getattr(keras.applications, family).preprocess_input(PIXELS.copy())
    np.testing.assert_allclose(normalised, expected, rtol=1e-4, atol=1e-4)
    assert is_reversed is (name == "ResNet50")


def test_a_model_of_bgr_images_reads_rgb():
    inputs = keras.Input((4, 4, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3, name="conv")(inputs))
    turned = preprocessing.in_order_of_rgb(model)
    np.testing.assert_allclose(turned(PIXELS), model(PIXELS[..., ::-1].copy()), rtol=1e-5)


def test_what_is_not_known_is_refused():
    with pytest.raises(InputError, match=r"preprocessing of os\.getcwd must be known"):
        preprocessing.normalisation("os.getcwd")
