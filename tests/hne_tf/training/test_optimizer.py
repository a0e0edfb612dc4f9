"""The fused optimiser moves weights as Keras's own does."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.training.backends.fused_sgd import FusedSGD


def walk(kind, gradients, momentum, nesterov):
    """Weights after each of the gradients."""
    variables = [keras.Variable(np.full((2, 3), 0.5, np.float32)), keras.Variable([1.0, -1.0])]
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = kind(rate, momentum=momentum, nesterov=nesterov)
    optimizer.build(variables)
    step = tf.function(lambda *values: optimizer.apply(list(values), variables))
    path = []
    for values in gradients:
        step(*values)
        path.append([variable.numpy().copy() for variable in variables])
    return path


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_weights_go_the_way_of_keras(momentum, nesterov):
    rng = np.random.default_rng(0)
    gradients = [
        (
            tf.constant(rng.normal(size=(2, 3)), tf.float32),
            tf.constant(rng.normal(size=2), tf.float32),
        )
        for _ in range(5)
    ]
    got = walk(FusedSGD, gradients, momentum, nesterov)
    expected = walk(keras.optimizers.SGD, gradients, momentum, nesterov)
    for step, (mine, theirs) in enumerate(zip(got, expected, strict=True)):
        for value, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-6, err_msg=f"step {step}")


def test_rows_of_an_embedding_go_the_way_of_keras():
    rows = tf.IndexedSlices(tf.ones([1, 3]), tf.constant([1]), tf.constant([2, 3]))
    gradients = [(rows, tf.ones([2]))] * 2
    got = walk(FusedSGD, gradients, 0.9, True)
    expected = walk(keras.optimizers.SGD, gradients, 0.9, True)
    for value, other in zip(got[-1], expected[-1], strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-6)
    assert (got[-1][0][0] == 0.5).all()


def test_each_weight_takes_one_operation():
    variable = keras.Variable(np.zeros((2, 3), np.float32))
    optimizer = FusedSGD(0.1, momentum=0.9, nesterov=True)
    optimizer.build([variable])
    apply = tf.function(lambda value: optimizer.apply([value], [variable]))
    kinds = [
        node.type for node in apply.get_concrete_function(tf.ones([2, 3])).graph.get_operations()
    ]
    assert kinds.count("ResourceApplyKerasMomentum") == 1
    assert "Mul" not in kinds
