import keras
import numpy as np
import pytest

from hne_tf.models.layers.shifted import ShiftedDepthwiseConv2D


@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("shape", [(6, 7), (5, 2)])
def test_products_add_up_to_the_convolution(strides, size, shape):
    settings = {"strides": strides, "padding": "same", "use_bias": False}
    shifted = ShiftedDepthwiseConv2D(size, **settings)
    ours = keras.layers.DepthwiseConv2D(size, **settings)
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    got = shifted(x)
    ours(x)
    ours.set_weights(shifted.get_weights())
    np.testing.assert_allclose(got, ours(x), rtol=1e-5, atol=1e-5)


def test_the_sum_is_rounded_once():
    layer = ShiftedDepthwiseConv2D(
        3, padding="same", use_bias=False, dtype="mixed_bfloat16", depthwise_initializer="ones"
    )
    x = np.full((1, 3, 3, 1), 1.0, np.float32)
    x[0, 0, 0] = 256
    assert layer(x).dtype == "bfloat16"
    # Each 1 that is added to 256 is lost in bfloat16; eight of them are not.
    assert float(layer(x)[0, 1, 1, 0]) == 264.0
