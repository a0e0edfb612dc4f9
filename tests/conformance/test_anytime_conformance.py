"""Anytime inference on every architecture and tree, in every form of the model."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.lite.python import schema_py_generated as schema

from hne_tf.export import signatures
from hne_tf.export.live import live_steps
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import load
from hne_tf.exported.session import AnytimeSession
from hne_tf.exported.versions import MANIFEST

TOLERANCE = 1e-4
CONVOLUTIONS = {"Conv2D", "DepthwiseConv2dNative"}
TFLITE_CONVOLUTIONS = {
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
}


@pytest.fixture(scope="module")
def live(model):
    return live_steps(model)


@pytest.fixture(scope="module")
def version(deployed_model, tmp_path_factory):
    """A folder with the model's steps and their manifest."""
    folder = tmp_path_factory.mktemp("models") / "1"
    endpoints = signatures.signatures(deployed_model, [deployed_model.tree.leaves])
    signatures.save(endpoints, str(folder))
    (folder / MANIFEST).parent.mkdir()
    (folder / MANIFEST).write_text(description(deployed_model).to_text())
    return folder


@pytest.fixture(scope="module")
def tflite(model, version, tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "model.tflite"
    keys = [step.signature for step in description(model).steps]
    converter = tf.lite.TFLiteConverter.from_saved_model(str(version), signature_keys=keys)
    tflite_file.write(path, converter.convert(), description(model))
    return path


@pytest.fixture(scope="module")
def runners(live, version, tflite):
    return {
        "live": live,
        "saved_model": load(version).steps,
        "tflite": load(tflite).steps,
    }


def description(model):
    sizes = [model.tree.leaves]
    return Manifest.of_tree(
        model.tree, "model", model.images.class_names, model.images.shape, sizes=sizes
    )


every_form = pytest.mark.parametrize("form", ["live", "saved_model", "tflite"])


@every_form
def test_after_each_step_the_answer_is_that_of_the_ensemble(
    form, model, runners, images, leaf_logits, numpy_answer
):
    sizes = []
    for size, probabilities in AnytimeSession(runners[form], images):
        expected = numpy_answer(leaf_logits, size)["probabilities"]
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=TOLERANCE)
        sizes.append(size)
    assert sizes == list(range(1, model.tree.leaves + 1))


@every_form
def test_images_that_stop_apart_have_the_answers_of_their_sizes(
    form, model, runners, images, leaf_logits, numpy_answer
):
    session = AnytimeSession(runners[form], images)
    confidence = float(np.median(numpy_answer(leaf_logits, 1)["probabilities"].max(axis=1)))
    stopped = session.run(confidence=confidence)
    assert len(set(stopped.sizes)) > 1
    for answer in (stopped, session.run(confidence=0.999), session.run()):
        expected = [
            numpy_answer(leaf_logits[[row]], size)["probabilities"][0]
            for row, size in enumerate(answer.sizes)
        ]
        np.testing.assert_allclose(answer.probabilities, expected, rtol=0, atol=TOLERANCE)
    assert set(answer.sizes) == {model.tree.leaves}


# No convolution is computed twice: counted in the graphs themselves.


def convolutions_of_the_tree(model):
    """Convolution layers of every node, each node once."""
    layers = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)
    return sum(
        isinstance(layer, layers)
        for row in model.node_models
        for node in row
        for layer in node.layers
    )


def saved_model_operations(function):
    """Counts the operations of a loaded signature, with those of functions that it calls."""
    graph = function.graph.as_graph_def()
    library = {nested.signature.name: nested.node_def for nested in graph.library.function}

    def count(nodes):
        operations = collections.Counter(node.op for node in nodes)
        for node in nodes:
            for value in node.attr.values():
                if value.func.name in library:
                    operations += count(library[value.func.name])
        return operations

    return count(graph.node)


def tflite_operations(flatbuffer, signature):
    """Counts the operations of a signature's subgraph."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer))
    (index,) = [
        entry.subgraphIndex
        for entry in model.signatureDefs
        if entry.signatureKey.decode() == signature
    ]
    return collections.Counter(
        model.operatorCodes[operator.opcodeIndex].builtinCode
        for operator in model.subgraphs[index].operators
    )


def test_saved_model_steps_hold_each_convolution_of_the_tree_once(model, version, live):
    loaded = tf.saved_model.load(str(version))
    counts = [saved_model_operations(loaded.signatures[step.signature]) for step in live.steps]
    found = [sum(count[name] for name in CONVOLUTIONS) for count in counts]
    assert sum(found) == convolutions_of_the_tree(model)
    assert all(found)


def test_tflite_steps_hold_each_convolution_of_the_tree_once(model, tflite, live):
    flatbuffer = tflite_file.read_flatbuffer(tflite)
    counts = [tflite_operations(flatbuffer, step.signature) for step in live.steps]
    found = [sum(count[code] for code in TFLITE_CONVOLUTIONS) for count in counts]
    assert sum(found) == convolutions_of_the_tree(model)
    assert all(found)


def test_only_the_batch_of_a_step_is_open(version, tflite, live):
    loaded = tf.saved_model.load(str(version))
    interpreter = Interpreter(str(tflite))
    for step in live.steps:
        function = loaded.signatures[step.signature]
        specs = [
            *function.structured_input_signature[1].values(),
            *function.structured_outputs.values(),
        ]
        runner = interpreter.get_signature_runner(step.signature)
        details = [*runner.get_input_details().values(), *runner.get_output_details().values()]
        shapes = [spec.shape.as_list() for spec in specs]
        shapes += [[None, *detail["shape_signature"][1:]] for detail in details]
        assert all(detail["shape_signature"][0] == -1 for detail in details)
        for batch, *shape in shapes:
            assert batch is None
            assert all(size is not None and size > 0 for size in shape)
