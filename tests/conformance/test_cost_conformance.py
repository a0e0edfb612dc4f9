"""What every model is said to cost is what TensorFlow finds in its frozen graph."""

import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from hne_tf.evaluation import cost
from hne_tf.exits import Exits
from hne_tf.models import averaging
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.tree import Tree

# The profiler also finds biases, shortcuts, means and the normalisation of images.
ELEMENTWISE = {"AddV2", "BiasAdd", "Mean", "Mul"}


def frozen_graph(model):
    """The graph for one image, without what its answer does not depend on."""
    spec = tf.TensorSpec((1, *model.input_shape[1:]), tf.uint8)
    function = tf.function(lambda images: model(images, training=False))
    return convert_variables_to_constants_v2(function.get_concrete_function(spec)).graph


def parameters(graph, kernels):
    """How many numbers the kernels and biases have."""
    weighted = (op for op in graph.get_operations() if op.type in kernels | {"BiasAdd"})
    return sum(op.inputs[1].shape.num_elements() for op in weighted)


@pytest.fixture(scope="module")
def deployed(case, model):
    return model if isinstance(case.layers, DeployLayers) else case.build(DeployLayers())


def test_every_factory_costs_the_same(model, deployed):
    sizes = range(1, model.tree.leaves + 1)
    assert cost.per_size(model, sizes) == cost.per_size(deployed, sizes)


def test_multiply_adds_and_parameters_are_those_that_tensorflow_finds(
    case, deployed, float_operations, kernels
):
    if not isinstance(case.layers, DeployLayers):
        pytest.skip("every factory costs the same")
    averages = ("logits", "last") if isinstance(deployed.tree, Exits) else ("logits",)
    for average in averages:
        for size, counted in cost.per_size(deployed, deployed.tree.sizes, average).items():
            graph = frozen_graph(deployed.of_leaves(averaging.leaves(size, average)))
            found = float_operations(graph)
            assert set(found) <= kernels | ELEMENTWISE
            profiled = sum(found.get(kind, 0) for kind in kernels) / 2
            assert counted.multiply_adds == pytest.approx(profiled, rel=0.01)
            assert counted.parameters == parameters(graph, kernels)


def test_steps_to_the_last_size_cost_what_the_whole_model_holds(deployed):
    walked = cost.per_size_walked(deployed)
    at_once = cost.per_size(deployed, walked)
    assert walked[deployed.tree.leaves].parameters == deployed.count_params()
    assert all(walked[size].multiply_adds >= at_once[size].multiply_adds for size in walked)
    if isinstance(deployed.tree, Tree):
        assert walked == at_once
