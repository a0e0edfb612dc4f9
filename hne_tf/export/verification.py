"""Proof, in a fresh process, that a SavedModel answers as the live model does.

    python -m hne_tf.export.verification FOLDER REFERENCE.npz

loads the model through the session-based loader that TF Serving uses. It prints a
line per finding. Only if there are none, its last line is the verdict, which lists
every signature that was compared. A process that ends without its verdict has proved
nothing, whatever it ended with.
"""

import os
import pathlib
import subprocess
import sys
from collections.abc import Collection, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from scipy import special
from tensorflow.core.framework import graph_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow.python.framework import op_def_registry

from hne_tf import hardware
from hne_tf.errors import InputError, ended_in_one_line
from hne_tf.exported.interface import TEMPERATURES, LeavesSignature, sum_output
from hne_tf.exported.manifest import Manifest, read_manifest
from hne_tf.exported.model import ExportedModel
from hne_tf.exported.steps import step_inputs

TOLERANCE = 1e-4

# TensorFlow's own, in every SavedModel.
_INIT_OP = "__saved_model_init_op"

_VERDICT = "verified:"


def verify(exported: ExportedModel, images: np.ndarray, leaf_logits: np.ndarray) -> None:
    """Compares every signature of a SavedModel with the live model, in a fresh process.

    Args:
      exported: the SavedModel, its manifest in its folder.
      images: uint8 `[batch, height, width, channels]`.
      leaf_logits: the live model's answer, `[batch, leaves, classes]`.

    Raises:
      InputError: on any difference above `TOLERANCE`, on anything in the graph that
        stock TF Serving on a CPU refuses or computes wrongly under load, and if the
        process ends before it has compared every signature in the manifest.
    """
    expected = listed_signatures(exported.manifest)
    folder, reference = exported.path, exported.path / "verification.npz"
    np.savez(reference, images=images, leaf_logits=leaf_logits)
    try:
        checked = subprocess.run(
            hardware.child("hne_tf.export.verification", str(folder), str(reference)),
            capture_output=True,
            text=True,
            check=False,
            # Sums in place are oneDNN's. Where TensorFlow leaves it off, they would not be found.
            env={**os.environ, hardware.ONEDNN_VARIABLE: "1"},
        )
    finally:
        reference.unlink()
    lines = checked.stdout.splitlines()
    if checked.returncode == 0 and lines == [_verdict(expected)]:
        return
    findings = [line for line in lines if not line.startswith(_VERDICT)]
    if checked.returncode or not findings:
        findings.append(_unproved(checked, expected))
    raise InputError(f"export refused, {len(findings)} findings: {'; '.join(findings[:3])}")


def listed_signatures(manifest: Manifest) -> set[str]:
    """Names of the signatures that a manifest describes: ensembles, steps, some leaves."""
    listed = {entry.name for entry in manifest.signatures}
    listed |= {part.signature for part in manifest.leaves}
    return listed | {step.signature for step in manifest.steps}


def _verdict(signatures: Collection[str]) -> str:
    return " ".join([_VERDICT, *sorted(signatures)])


def _unproved(checked: subprocess.CompletedProcess, expected: Collection[str]) -> str:
    """Why a process that ended without findings, or too early, is no proof."""
    last = [*checked.stderr.strip().splitlines()[-1:], "nothing on standard error"][0]
    return (
        f"the verifying process must compare {len(expected)} signatures and say so, "
        f"got exit code {checked.returncode} and {last}"
    )


def graph_findings(graph_def: graph_pb2.GraphDef) -> Iterator[str]:
    """What stock TF Serving on a CPU cannot run, though the loader here takes it."""
    yield from _node_findings("main graph", graph_def.node, {})
    for function in graph_def.library.function:
        name = function.signature.name
        if function.attr["_XlaMustCompile"].b:
            yield f"{name} must be compiled by XLA"
        arguments = {
            argument.name: function.arg_attr[index].attr["_output_shapes"].list.shape
            for index, argument in enumerate(function.signature.input_arg)
        }
        yield from _node_findings(name, function.node_def, arguments)


def _node_findings(name: str, nodes: Sequence[Any], arguments: dict[str, Any]) -> Iterator[str]:
    shapes = arguments | {node.name: node.attr["_output_shapes"].list.shape for node in nodes}
    for node in nodes:
        if "_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b:
            yield f"{node.name} in {name} must be compiled by XLA"
        if op_def_registry.get(node.op) is None:
            yield f"{node.name} in {name} is a {node.op}, not one of TensorFlow's own ops"
        if node.op == "Conv2D":
            yield from _convolution_findings(name, node, shapes)


def _convolution_findings(name: str, node: Any, shapes: dict[str, Any]) -> Iterator[str]:
    """A grouped convolution's kernel has fewer input channels than its input."""
    image, kernel = (shapes.get(source.split(":")[0]) for source in node.input[:2])
    if not image or not kernel:
        yield f"{node.name} in {name} is a convolution of unknown shape"
    elif image[0].dim[-1].size != kernel[0].dim[-2].size:
        yield f"{node.name} in {name} is a grouped convolution"


def kernel_findings(graph_def: graph_pb2.GraphDef) -> Iterator[str]:
    """What an optimised graph gets wrong for several requests at a time, see `models.served`."""
    for node in graph_def.node:
        if node.op.endswith("FusedConv2D") and b"Add" in node.attr["fused_ops"].list.s:
            yield f"{node.name} adds in place, which is not safe for two requests at a time"


def answer_findings(
    session: tf.compat.v1.Session,
    signatures: dict[str, meta_graph_pb2.SignatureDef],
    manifest: Manifest,
    images: np.ndarray,
    leaf_logits: np.ndarray,
    compared: list[str],
) -> Iterator[str]:
    """Differences of the signatures' answers from plain NumPy on the live leaf logits.

    And what in the graphs that ran must not run for several requests at a time. The
    names of the signatures that were compared are added to `compared`.
    """
    average = manifest.average
    for name in sorted(listed_signatures(manifest) ^ (signatures.keys() - {_INIT_OP})):
        yield f"{name} is not in both the manifest and the model"
    for entry in manifest.signatures:
        name, size = entry.name, entry.size
        answer = yield from _run(session, signatures[name], {"images": images})
        expected = expected_answer(leaf_logits, size, average, manifest.temperature(size))
        yield from _differences(name, answer, expected, {"logits", "probabilities"})
        compared.append(name)
    known: dict[str, np.ndarray] = {"images": images}
    for step in manifest.steps:
        inputs = step_inputs(step, known)
        answer = yield from _run(session, signatures[step.signature], inputs)
        known |= answer
        temperature = manifest.temperature(step.size)
        expected = expected_answer(leaf_logits, step.size, average, temperature)
        outputs = {"running_sum", "probabilities", *step.caches}
        yield from _differences(step.signature, answer, expected, outputs)
        compared.append(step.signature)
    for part in manifest.leaves:
        answer = yield from _run(session, signatures[part.signature], {"images": images})
        expected = expected_sums(leaf_logits, part, manifest)
        yield from _differences(part.signature, answer, expected, set(expected))
        compared.append(part.signature)


def expected_answer(
    leaf_logits: np.ndarray, size: int, average: str, temperature: float = 1.0
) -> dict[str, np.ndarray]:
    """What a signature must give, computed anew from leaf logits `[batch, leaves, classes]`."""
    sums, logits = _sums_and_logits(leaf_logits, size, average.removeprefix("cached_"))
    if average.startswith("cached_"):
        if size > 1:
            before = expected_answer(leaf_logits, size - 1, average)["logits"]
            surer = _surety(logits) >= _surety(before)
            logits = np.where(surer[:, None], logits, before)
        sums = np.concatenate([sums, logits], axis=1)
    logits = logits / temperature
    return {
        "logits": logits,
        "probabilities": special.softmax(logits, axis=-1),
        "running_sum": sums,
    }


def expected_sums(
    leaf_logits: np.ndarray, part: LeavesSignature, manifest: Manifest
) -> dict[str, np.ndarray]:
    """What the signature of some leaves must give, from all leaf logits."""
    own = leaf_logits[:, part.first : part.stop]
    expected = {sum_output(manifest.average): _sums_and_logits(own, part.size, manifest.average)[0]}
    if manifest.calibration and manifest.calibration.applied:
        temperatures = [manifest.temperature(step.size) for step in manifest.steps]
        expected[TEMPERATURES] = np.tile(temperatures, (len(own), 1))
    return expected


def _sums_and_logits(
    leaf_logits: np.ndarray, size: int, average: str
) -> tuple[np.ndarray, np.ndarray]:
    """What is added up over the first leaves, and the logits of their answer."""
    first = leaf_logits[:, :size].astype(np.float64)
    if average == "probabilities":
        first = special.softmax(first, axis=-1)
    if average == "product":
        first = np.log(np.maximum(first, 1e-3))
    if average == "last":
        first = first[:, -1:]
    sums = first.sum(axis=1)
    together = sums if average in ("sum", "product") else first.mean(axis=1)
    return sums, np.log(together) if average == "probabilities" else together


def _surety(logits: np.ndarray) -> np.ndarray:
    """Log-odds of the likeliest class, up to 80."""
    ordered = np.sort(logits, axis=-1)
    return np.minimum(ordered[:, -1] - special.logsumexp(ordered[:, :-1], axis=-1), 80.0)


def _run(
    session: tf.compat.v1.Session,
    signature: meta_graph_pb2.SignatureDef,
    inputs: dict[str, np.ndarray],
) -> Generator[str, None, dict[str, np.ndarray]]:
    """Gives the findings of the graph that ran, and returns the outputs by name."""
    feeds = {signature.inputs[name].name: value for name, value in inputs.items()}
    fetches = {name: tensor.name for name, tensor in signature.outputs.items()}
    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    ran = tf.compat.v1.RunMetadata()
    outputs = session.run(fetches, feeds, options, ran)
    if not ran.partition_graphs:
        yield "the graphs that ran must be known, got none"
    for graph in ran.partition_graphs:
        yield from kernel_findings(graph)
    return outputs


def _differences(
    name: str, answer: dict[str, np.ndarray], expected: dict[str, np.ndarray], outputs: set[str]
) -> Iterator[str]:
    """Findings unless `answer` has just the `outputs`, those `expected` with their values."""
    if answer.keys() != outputs:
        yield f"{name} must give {sorted(outputs)}, got {sorted(answer)}"
    for output in sorted(answer.keys() & expected.keys()):
        difference = relative_difference(answer[output], expected[output])
        if not difference <= TOLERANCE:
            yield f"{output} of {name} differs by {difference:.2g}, above {TOLERANCE}"


def relative_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a part of the largest value expected, which is at least 1.

    A sum over many leaves has the rounding of large numbers. Infinite for other shapes.
    """
    if got.shape != expected.shape:
        return np.inf
    return float(np.max(np.abs(got - expected)) / max(1.0, np.max(np.abs(expected))))


def _findings(folder: str, reference: str, compared: list[str]) -> Iterator[str]:
    manifest = read_manifest(pathlib.Path(folder))
    with np.load(reference) as arrays:
        images, leaf_logits = arrays["images"], arrays["leaf_logits"]
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        yield from graph_findings(meta_graph.graph_def)
        yield from answer_findings(
            session, meta_graph.signature_def, manifest, images, leaf_logits, compared
        )


def _main(folder: str, reference: str) -> None:
    compared: list[str] = []
    findings = 0
    with ended_in_one_line():
        for finding in _findings(folder, reference, compared):
            findings += 1
            # At once: what a killed process has in its buffer is lost.
            print(finding, flush=True)
    if not findings:
        print(_verdict(compared), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
