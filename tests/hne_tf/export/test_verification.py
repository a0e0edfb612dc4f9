import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import test_util

from hne_tf.errors import InputError
from hne_tf.export import verification
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.saved_model import SavedModel
from hne_tf.models.layers.served import Opaque
from hne_tf.tree import Tree


def graph_of(function, folder):
    """GraphDef of a SavedModel whose only signature takes images [batch, 4, 4, 4]."""
    module = tf.Module()
    module.function = tf.function(
        function, input_signature=[tf.TensorSpec([None, 4, 4, 4], tf.float32, name="images")]
    )
    tf.saved_model.save(module, str(folder), signatures=module.function)
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((folder / "saved_model.pb").read_bytes())
    return saved_model.meta_graphs[0].graph_def


def test_a_plain_convolution_passes(tmp_path):
    kernel = tf.ones([3, 3, 4, 8])
    graph = graph_of(lambda images: {"y": tf.nn.conv2d(images, kernel, 1, "SAME")}, tmp_path)
    assert list(verification.graph_findings(graph)) == []


def test_a_grouped_convolution_is_found(tmp_path):
    kernel = tf.ones([3, 3, 2, 8])
    graph = graph_of(lambda images: {"y": tf.nn.conv2d(images, kernel, 1, "SAME")}, tmp_path)
    findings = list(verification.graph_findings(graph))
    assert len(findings) == 1
    assert "grouped convolution" in findings[0]


def test_a_grouped_keras_layer_is_found(tmp_path):
    inputs = keras.Input([4, 4, 4])
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, groups=2)(inputs))
    model.export(str(tmp_path), verbose=False)
    saved_model = saved_model_pb2.SavedModel()
    saved_model.ParseFromString((tmp_path / "saved_model.pb").read_bytes())
    findings = list(verification.graph_findings(saved_model.meta_graphs[0].graph_def))
    assert any("XLA" in finding for finding in findings)


def test_a_function_that_must_be_compiled_is_found(tmp_path):
    compiled = tf.function(lambda images: images * 2, jit_compile=True)
    graph = graph_of(lambda images: {"y": compiled(images)}, tmp_path)
    assert any("XLA" in finding for finding in verification.graph_findings(graph))


@pytest.mark.parametrize("place", ["main", "function"])
def test_an_op_that_tensorflow_does_not_have_is_found(tmp_path, place):
    graph = graph_of(lambda images: {"y": images + 1}, tmp_path)
    node = graph.node.add() if place == "main" else graph.library.function[0].node_def.add()
    node.name, node.op = "mine", "MyOwnOp"
    findings = list(verification.graph_findings(graph))
    assert len(findings) == 1
    assert "MyOwnOp" in findings[0]


def optimised(function):
    """The graphs in which TensorFlow runs a function of an activation [2, 8, 8, 4]."""
    ran = tf.compat.v1.RunMetadata()
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        activation = tf.compat.v1.placeholder(tf.float32, [None, 8, 8, 4])
        session.run(
            # What is fed may have any shape, and a sum of unknown shapes is not fused.
            function(tf.ensure_shape(activation, activation.shape)),
            {activation: np.ones([2, 8, 8, 4], np.float32)},
            tf.compat.v1.RunOptions(output_partition_graphs=True),
            ran,
        )
    return list(ran.partition_graphs)


def residual(x, keep=lambda x: x):
    y = tf.nn.bias_add(tf.nn.conv2d(x, tf.ones([3, 3, 4, 4]), 1, "SAME"), tf.ones([4]))
    return tf.nn.relu(keep(y) + x)


@pytest.mark.skipif(not test_util.IsMklEnabled(), reason="TensorFlow runs without oneDNN here")
def test_a_sum_that_a_convolution_computes_in_place_is_found():
    graphs = optimised(residual)
    findings = [line for graph in graphs for line in verification.kernel_findings(graph)]
    assert len(findings) == 1
    assert "adds in place" in findings[0]


def test_a_sum_of_what_is_opaque_passes():
    graphs = optimised(lambda x: residual(x, Opaque()))
    assert [line for graph in graphs for line in verification.kernel_findings(graph)] == []
    assert any("FusedConv2D" in node.op for graph in graphs for node in graph.node)


@pytest.fixture
def verify(tmp_path, monkeypatch):
    """Verifies a version of two signatures by a program in the place of Python."""
    (tmp_path / "saved_model.pb").touch()
    manifest = Manifest.of_tree(
        Tree((1,)), "model", ("a", "b", "c"), (2, 2, 1), serving_default=False
    )

    def run(script):
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        exported = SavedModel(tmp_path, manifest)
        verification.verify(exported, np.zeros([1, 2, 2, 1], np.uint8), np.zeros([1, 1, 3]))

    return run


VERDICT = "echo verified: ensemble_1 step_1"


def test_only_a_verdict_on_every_signature_and_a_zero_exit_prove_anything(verify):
    verify(VERDICT)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 0", "exit code 0 and nothing on standard error"),
        ("exit 1", "exit code 1 and nothing on standard error"),
        ("kill -9 $$", "exit code -9"),
        (f"{VERDICT}; kill -9 $$", "exit code -9"),
        (f"{VERDICT}; echo no memory >&2; exit 1", "exit code 1 and no memory"),
        ("echo verified: ensemble_1", "2 signatures"),
        ("echo verified: ensemble_1 step_1 step_2", "2 signatures"),
        ("echo verified: ; exit 0", "2 signatures"),
        (f"echo ensemble_1 differs; {VERDICT}", "1 findings: ensemble_1 differs"),
        (f"{VERDICT}; echo ensemble_1 differs", "1 findings: ensemble_1 differs"),
        ("echo ensemble_1 differs; kill -9 $$", "2 findings: ensemble_1 differs; the verifying"),
    ],
)
def test_a_process_that_proves_less_is_a_refusal(verify, script, words):
    with pytest.raises(InputError, match=f"export refused, .*{words}"):
        verify(script)


def test_another_shape_is_another_answer():
    assert verification.relative_difference(np.ones([1, 3]), np.ones([4, 3])) == np.inf
    assert verification.relative_difference(np.ones([4, 3]), np.ones([4, 3])) == 0


def test_sums_in_place_are_looked_for_where_tensorflow_leaves_onednn_off(verify):
    verify(f'test "$TF_ENABLE_ONEDNN_OPTS" = 1 && {VERDICT}')


def test_why_a_verification_ends_is_told_in_one_line(monkeypatch, capsys):
    def broken(*arguments):
        yield "a finding"
        raise RuntimeError("no memory\n\t for that")

    monkeypatch.setattr(verification, "_findings", broken)
    with pytest.raises(SystemExit, match="RuntimeError: no memory for that"):
        verification._main("folder", "reference")
    assert capsys.readouterr().out == "a finding\n"
