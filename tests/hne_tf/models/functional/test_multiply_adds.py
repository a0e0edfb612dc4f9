import re

import keras
import pytest
from keras import layers, ops

from hne_tf.errors import InputError
from hne_tf.models.functional import multiply_adds

IMAGE, TOKENS = (8, 6, 4), (5, 6)


def counted(shape, *chain):
    """Multiply-adds of layers one after the other."""
    inputs = x = keras.Input(shape)
    for layer in chain:
        x = layer(x)
    return multiply_adds.of_model(keras.Model(inputs, x))


def inner():
    return keras.Sequential([keras.Input(TOKENS), layers.Dense(3), layers.ReLU()])


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        (IMAGE, layers.Conv2D(5, 3, padding="same"), 48 * 9 * 4 * 5),
        (IMAGE, layers.Conv2D(5, 3, 2, padding="valid"), 3 * 2 * 9 * 4 * 5),
        (IMAGE, layers.Conv2D(6, 3, padding="same", groups=2), 48 * 9 * 2 * 6),
        (IMAGE, layers.DepthwiseConv2D(3, padding="same"), 48 * 9 * 4),
        (IMAGE, layers.SeparableConv2D(5, 3, padding="same"), 48 * (9 * 4 + 4 * 5)),
        (IMAGE, layers.Conv2DTranspose(5, 3, 2), 48 * 9 * 4 * 5),
        ((9, 4), layers.Conv1D(5, 3, padding="same"), 9 * 3 * 4 * 5),
        (IMAGE, layers.Dense(3), 48 * 4 * 3),
        (TOKENS, layers.EinsumDense("abc,cde->abde", (None, 2, 3)), 5 * 6 * 2 * 3),
        (IMAGE, layers.EinsumDense("...x,xy->...y", 3), 48 * 4 * 3),
        (TOKENS, layers.LSTM(3), 5 * (6 + 3) * 4 * 3),
        (TOKENS, layers.GRU(3), 5 * (6 + 3) * 3 * 3),
        (TOKENS, layers.Bidirectional(layers.SimpleRNN(3)), 2 * 5 * (6 + 3) * 3),
        (TOKENS, layers.TimeDistributed(layers.Dense(3)), 5 * 6 * 3),
        (TOKENS, layers.SpectralNormalization(layers.Dense(3)), 5 * 6 * 3),
        (TOKENS, lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1))), 5 * 6 * 5),
        (TOKENS, lambda x: layers.Dot(2)([x, x]), 5 * 5 * 6),
        (TOKENS, lambda x: layers.Attention()([x, x]), 5 * 5 * (6 + 6)),
        (
            TOKENS,
            lambda x: layers.MultiHeadAttention(2, 3)(x, x),
            4 * 5 * 6 * 6 + 5 * 5 * 2 * (3 + 3),
        ),
        (
            TOKENS,
            lambda x: layers.GroupQueryAttention(3, 4, 2)(x, x),
            2 * 5 * 6 * 12 + 2 * 5 * 6 * 6 + 5 * 5 * 4 * (3 + 3),
        ),
        (TOKENS, inner(), 5 * 6 * 3),
        (TOKENS, layers.Embedding(7, 3), 0),
        (IMAGE, layers.BatchNormalization(), 0),
        (IMAGE, layers.LayerNormalization(axis=(1, 2, 3)), 0),
        (IMAGE, layers.PReLU(), 0),
        (IMAGE, layers.GlobalAveragePooling2D(), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_is_counted_as_by_hand(shape, layer, expected):
    assert counted(shape, layer) == expected


def test_channels_may_come_first():
    # Without the input's shape, no device has to compute the layer.
    layer = layers.Conv2D(5, 3, padding="same", data_format="channels_first")
    assert counted((4, 8, 6), layer) == 48 * 9 * 4 * 5


def test_a_layer_counts_for_each_call_and_a_nested_model_at_the_shapes_of_its_call():
    dense = layers.Dense(6)
    assert counted(TOKENS, dense, dense) == 2 * 5 * 6 * 6
    image = keras.Input((None, None, 4))
    nested = keras.Model(image, layers.Conv2D(5, 1)(image))
    assert counted(IMAGE, nested) == 48 * 4 * 5


class Mine(layers.Layer):
    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 2), name="matrix")

    def call(self, inputs):
        return ops.matmul(inputs, self.matrix)


class Counted(Mine):
    pass


class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, inputs):
        return inputs * self.scale


def test_layers_of_the_user_s_own_are_counted_where_they_say_how():
    assert counted(TOKENS, Scale()) == 0
    with pytest.raises(InputError, match=re.escape("that is not Keras's")) as refused:
        counted(TOKENS, Mine(name="my_layer"))
    assert str(refused.value).endswith("got Mine 'my_layer'")

    @multiply_adds.multiply_adds.register(Counted)
    def _(layer, inputs, output):
        return 17

    assert counted(TOKENS, Counted()) == 17


def test_operations_that_are_not_counted_are_named():
    with pytest.raises(InputError, match="got Einsum"):
        counted(TOKENS, lambda x: ops.einsum("abc,abc->ac", x, x))
    with pytest.raises(InputError, match="counted for known shapes"):
        counted((None, None, 4), layers.Conv2D(5, 3))
