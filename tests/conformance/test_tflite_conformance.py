"""TFLite files of every architecture and tree, with all their signatures.

A case of the training factory is folded and becomes a file in float32, one of the deploy
factory is quantised and becomes one in int8.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tensorflow.lite.python import schema_py_generated as schema

from hne_tf.export import tflite
from hne_tf.export.post_training import post_training
from hne_tf.models import weights
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import fold
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.training import TrainingLayers

# Of the answers, against NumPy on the leaf logits; integers against the model that
# simulates them, where a value may fall to the other side of a rounding.
TOLERANCES = {"float32": 1e-4, "int8": 2e-2}
OPERATORS = schema.BuiltinOperator
CONVOLUTIONS = {OPERATORS.CONV_2D, OPERATORS.DEPTHWISE_CONV_2D}
WITH_WEIGHTS = {*CONVOLUTIONS, OPERATORS.FULLY_CONNECTED}
# Classifiers, and what runs over the leaves.
IN_FLOAT = {OPERATORS.FULLY_CONNECTED, OPERATORS.SOFTMAX, OPERATORS.SUM, OPERATORS.DIV}


@dataclasses.dataclass(frozen=True)
class Converted:
    """A file with the model that it must answer as."""

    flatbuffer: bytes
    model: TreeEnsemble
    leaf_logits: np.ndarray
    numpy_answer: Callable[..., dict[str, np.ndarray]]
    mode: str

    @property
    def sizes(self):
        return range(1, self.model.tree.leaves + 1)

    def interpreter(self):
        return Interpreter(model_content=self.flatbuffer)

    def content(self):
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(self.flatbuffer, 0))

    def operators(self):
        """(kind, input tensors) of every operator of every signature."""
        content = self.content()
        for graph in content.subgraphs:
            for operator in graph.operators:
                code = content.operatorCodes[operator.opcodeIndex]
                kind = max(code.builtinCode, code.deprecatedBuiltinCode)
                yield kind, [graph.tensors[index] for index in operator.inputs]

    def assert_answers(self, got, size):
        """Compares all answers for the first images with NumPy on the model's leaf logits."""
        batch = len(got["probabilities"])
        expected = self.numpy_answer(self.leaf_logits[:batch], size)
        tolerance = TOLERANCES[self.mode]
        for output in got.keys() & expected.keys():
            np.testing.assert_allclose(
                got[output], expected[output], rtol=tolerance, atol=tolerance, err_msg=output
            )


@pytest.fixture(scope="module")
def converted(case, model, images, leaf_logits, numpy_answer):
    """The model's file with every size."""
    sizes = range(1, model.tree.leaves + 1)
    if isinstance(case.layers, TrainingLayers):
        deployed = case.build(DeployLayers())
        weights.load(deployed, fold(weights.read(model)))
        flatbuffer = tflite.convert(deployed, sizes, "float32")
        return Converted(flatbuffer, model, leaf_logits, numpy_answer, "float32")
    quantized = post_training(model, [images])
    flatbuffer = tflite.convert(quantized, sizes, "int8")
    leaf_logits = keras.ops.convert_to_numpy(quantized(images, training=False))
    return Converted(flatbuffer, quantized, leaf_logits, numpy_answer, "int8")


def walk(interpreter, tree, images):
    """Outputs of every step signature, by size."""
    newest = {"images": images}
    answers = {}
    for step in tree.steps:
        start = f"cache_{step.branch_block - 1}" if step.branch_block else "images"
        inputs = {"cache" if step.branch_block else "images": newest[start]}
        if step.size > 1:
            inputs["running_sum"] = newest["running_sum"]
        runner = interpreter.get_signature_runner(f"step_{step.size}")
        answers[step.size] = runner(**inputs)
        newest |= answers[step.size]
    return answers


def test_signatures_are_the_sizes_and_the_steps(converted):
    listed = converted.interpreter().get_signature_list()
    assert set(listed) == {f"{kind}_{n}" for kind in ("ensemble", "step") for n in converted.sizes}


def test_every_size_answers_as_the_live_model_for_any_batch(converted, images):
    interpreter = converted.interpreter()
    for size in converted.sizes:
        runner = interpreter.get_signature_runner(f"ensemble_{size}")
        for batch in (1, 3, 1):
            got = runner(images=images[:batch])
            assert len(got["logits"]) == batch
            assert got.keys() == {"logits", "probabilities"}
            converted.assert_answers(got, size)


def test_steps_walk_through_every_size_for_any_batch(converted, images):
    interpreter = converted.interpreter()
    tree = converted.model.tree
    for batch in (1, 3, 1):
        answers = walk(interpreter, tree, images[:batch])
        for step in tree.steps:
            got = answers[step.size]
            caches = {f"cache_{block}" for block in step.cached_blocks}
            assert got.keys() == {"running_sum", "probabilities", *caches}
            converted.assert_answers(got, step.size)


def test_a_step_is_the_ensemble(converted, images):
    # Also in integers: the same nodes, to the last bit, in every signature.
    interpreter = converted.interpreter()
    for size, step in walk(interpreter, converted.model.tree, images).items():
        ensemble = interpreter.get_signature_runner(f"ensemble_{size}")(images=images)
        np.testing.assert_allclose(step["probabilities"], ensemble["probabilities"], atol=1e-5)


def test_only_the_batch_varies(converted):
    for graph in converted.content().subgraphs:
        for index in (*graph.inputs, *graph.outputs):
            batch, *shape = graph.tensors[index].shapeSignature
            assert batch == -1
            assert min(shape) > 0


def test_signatures_share_the_weights(converted):
    buffers = converted.content().buffers
    weight_bytes = sum(
        len(buffers[number].data)
        for number in {
            tensor.buffer
            for kind, inputs in converted.operators()
            if kind in WITH_WEIGHTS
            for tensor in inputs[1:]
        }
    )
    other_bytes = sum(len(b.data) for b in buffers if b.data is not None) - weight_bytes
    values = weights.read(converted.model)
    kept = {name: v for name, v in fold(values).items() if "/range/" not in name}
    whole = sum(4 * value.size for value in kept.values())
    if converted.mode == "int8":
        # All but the kernels of convolutions has 4 bytes.
        whole -= sum(
            3 * value.size
            for name, value in kept.items()
            if name.endswith("kernel") and "/head/" not in name
        )
    assert weight_bytes == pytest.approx(whole, rel=0.02)
    # The normalisation, axes and the like.
    assert other_bytes < 500


def test_convolutions_are_in_the_mode_and_averages_in_float(converted):
    types = schema.TensorType
    found = {}
    for kind, inputs in converted.operators():
        found.setdefault(kind, set()).add(tuple(tensor.type for tensor in inputs))
    integers, floats = (types.INT8, types.INT8, types.INT32), (types.FLOAT32,) * 3
    expected = integers if converted.mode == "int8" else floats
    assert found[OPERATORS.CONV_2D] == {expected}
    assert found.get(OPERATORS.DEPTHWISE_CONV_2D, {expected}) == {expected}
    assert (OPERATORS.DEPTHWISE_CONV_2D in found) == any(
        name.endswith("depthwise_kernel") for name in weights.read(converted.model)
    )
    assert OPERATORS.SOFTMAX in found
    for kind in IN_FLOAT & found.keys():
        assert {first for first, *_ in found[kind]} == {types.FLOAT32}


def test_kernels_in_integers_have_a_scale_per_channel(converted):
    if converted.mode != "int8":
        return
    for kind, inputs in converted.operators():
        if kind in CONVOLUTIONS:
            kernel = inputs[1]
            # A depthwise kernel is [1, height, width, channels] there, another [out, …].
            channels = kernel.shape[3 if kind == OPERATORS.DEPTHWISE_CONV_2D else 0]
            assert len(kernel.quantization.scale) == channels


def test_weights_are_aligned(converted):
    model = schema.Model.GetRootAs(converted.flatbuffer, 0)
    start = np.frombuffer(converted.flatbuffer, np.uint8).__array_interface__["data"][0]
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if not buffer.DataIsNone():
            assert (buffer.DataAsNumpy().__array_interface__["data"][0] - start) % 16 == 0
