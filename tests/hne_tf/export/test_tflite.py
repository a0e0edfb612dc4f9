import dataclasses

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from scipy import special
from tensorflow.lite.python import schema_py_generated as schema

from hne_tf.errors import InputError
from hne_tf.export import tflite, tflite_verification
from hne_tf.export.post_training import post_training
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import load
from hne_tf.exported.steps import SignatureSteps, walk
from hne_tf.exported.tflite_model import TFLiteModel
from hne_tf.models.folding import deployed
from hne_tf.training import trained
from hne_tf.tree import Tree

MODES = ("float16", "dynamic_range", "int8")


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def files(run, tmp_path_factory):
    """A file of the tiny run in each mode; float32 is tested with the binary."""
    folder = tmp_path_factory.mktemp("files")
    for mode in MODES:
        path = folder / "new" / f"{mode}.tflite"
        tflite.convert_tflite(
            run.model,
            path,
            mode,
            representative=run.representative(500),
            test=run.batches("test"),
            validation=run.batches("validation"),
            sizes=[1, 3],
            report=lambda line: None,
        )
    return folder / "new"


@pytest.fixture(scope="module")
def reference(run):
    """Test images and the live model's leaf logits."""
    images, _ = next(iter(run.data_set.evaluation_batches("test", 32)))
    return images.numpy(), run.model(images, training=False).numpy()


def content(path):
    flatbuffer = tflite_file.read_flatbuffer(path)
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(flatbuffer, 0))


@pytest.mark.parametrize("mode", MODES)
def test_the_manifest_is_that_of_the_file(files, run, mode):
    manifest = tflite_file.read_manifest(files / f"{mode}.tflite")
    assert manifest.model == manifest.mode == mode
    assert manifest.branching == (1, 2, 2)
    assert manifest.sizes == (1, 3, 4)
    assert [entry.name for entry in manifest.signatures] == [
        "ensemble_1",
        "ensemble_3",
        "ensemble_4",
    ]
    assert [step.signature for step in manifest.steps] == [f"step_{n}" for n in range(1, 5)]
    assert manifest.image_shape == (8, 8, 1)
    normalisation = manifest.input.normalisation
    assert normalisation.inside_the_model is True
    assert normalisation.mean == run.data_set.spec.mean
    assert normalisation.std == run.data_set.spec.std
    assert manifest.cost.keys() == {1, 3, 4}
    assert manifest.latency is None
    listed = Interpreter(str(files / f"{mode}.tflite")).get_signature_list()
    named = {entry.name for entry in manifest.signatures}
    assert set(listed) == named | {step.signature for step in manifest.steps}


@pytest.fixture(scope="module")
def live_accuracy(run):
    return run.evaluate("test", sizes=[3])["sizes"][0]["accuracy"]


@pytest.mark.parametrize("mode", MODES)
def test_the_accuracy_is_that_of_the_file(files, run, live_accuracy, mode):
    path = files / f"{mode}.tflite"
    accuracy = tflite_file.read_manifest(path).accuracy
    assert accuracy.by_size.keys() == {1, 2, 3, 4}
    runner = Interpreter(str(path)).get_signature_runner("ensemble_3")
    batches = run.data_set.evaluation_batches("test", 64)
    correct = sum(
        (runner(images=images.numpy())["logits"].argmax(-1) == labels.numpy()).sum()
        for images, labels in batches
    )
    assert accuracy.by_size[3] == correct / run.data_set.examples("test")
    assert accuracy.by_size[3] == pytest.approx(live_accuracy, abs=0.05)


def test_float16_halves_the_weights(files):
    parameters = tflite_file.read_manifest(files / "float16.tflite").cost[4].parameters
    model = content(files / "float16.tflite")
    halves = {
        tensor.buffer
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type == schema.TensorType.FLOAT16
    }
    weight_bytes = sum(
        len(model.buffers[number].data)
        for number in halves
        if model.buffers[number].data is not None
    )
    assert weight_bytes == pytest.approx(2 * parameters, rel=0.02)


def test_tensors_have_no_names_and_signatures_do(files):
    model = content(files / "int8.tflite")
    assert not any(tensor.name for graph in model.subgraphs for tensor in graph.tensors)
    for definition in model.signatureDefs:
        assert all(entry.name for entry in (*definition.inputs, *definition.outputs))


def test_a_file_that_answers_otherwise_is_refused(files, reference):
    images, leaf_logits = reference
    with pytest.raises(InputError, match=r"export refused, .* differs by"):
        tflite_verification.verify(
            load(files / "float16.tflite"), images, leaf_logits + np.eye(10)[0]
        )
    with pytest.raises(InputError, match=r"of the classes are the live model's, below 75%"):
        tflite_verification.verify(load(files / "int8.tflite"), images, -leaf_logits)
    for mode in MODES:
        assert (
            tflite_verification.verify(load(files / f"{mode}.tflite"), images, leaf_logits) >= 0.75
        )


def test_steps_that_are_not_the_ensembles_are_refused(files, reference, tmp_path, monkeypatch):
    steps = SignatureSteps.run

    def drifting(self, step, inputs):
        outputs = steps(self, step, inputs)
        return outputs | {"probabilities": outputs["probabilities"] + 1e-3 * (step.size == 3)}

    monkeypatch.setattr(SignatureSteps, "run", drifting)
    with pytest.raises(InputError, match=r"1 findings: probabilities of step_3 differs by 0.001"):
        tflite_verification.verify(load(files / "int8.tflite"), *reference)


def without_an_ensemble(manifest):
    kept = [entry for entry in manifest.signatures if entry.size != 3]
    return dataclasses.replace(manifest, sizes=(1, 4), signatures=tuple(kept))


def of_fewer_leaves(manifest):
    return Manifest.of_tree(Tree((1, 3)), "tiny", manifest.classes, manifest.image_shape)


@pytest.mark.parametrize("change", [without_an_ensemble, of_fewer_leaves])
@pytest.mark.parametrize("mode", MODES)
def test_a_signature_that_is_not_listed_is_refused(files, reference, mode, change):
    path = files / f"{mode}.tflite"
    exported = TFLiteModel(path, change(tflite_file.read_manifest(path)))
    with pytest.raises(InputError, match=r"export refused: .* 4 steps and the full ensemble"):
        tflite_verification.verify(exported, *reference)


@pytest.mark.parametrize(
    ("mode", "output"),
    [("float16", "probabilities"), ("float16", "running_sum"), ("int8", "probabilities")],
)
def test_an_output_that_is_missing_is_refused(files, reference, monkeypatch, mode, output):
    def lacking(runner, images):
        answers = walk(runner, images)
        del answers[3][output]
        return answers

    monkeypatch.setattr(tflite_verification, "walk", lacking)
    with pytest.raises(InputError, match=rf"export refused, .*step_3 must give {output}"):
        tflite_verification.verify(load(files / f"{mode}.tflite"), *reference)


def test_no_images_prove_nothing(files, reference):
    images, leaf_logits = reference
    for mode in MODES:
        with pytest.raises(InputError, match=r"at least one image, got none"):
            tflite_verification.verify(load(files / f"{mode}.tflite"), images[:0], leaf_logits[:0])


def test_nothing_is_left_of_a_refused_export(files, run, tmp_path, monkeypatch):
    # Integers in the place of float32 answer almost alike, which is not enough.
    wrong = tflite_file.read_flatbuffer(files / "int8.tflite")
    monkeypatch.setattr(tflite, "convert", lambda *arguments: wrong)
    with pytest.raises(InputError, match=r"export refused, .* above 0.0001"):
        tflite.convert_tflite(run.model, tmp_path / "new" / "model.tflite", sizes=[1, 3])
    assert not list(tmp_path.iterdir())


def test_a_quantised_run_goes_into_int8_as_it_is(files, run, reference, tmp_path):
    quantized = post_training(deployed(run.model), [reference[0]])
    with pytest.raises(InputError, match=r"trained with quantisation .* int8 only, got 'float16'"):
        tflite.convert_tflite(quantized, tmp_path / "a.tflite", "float16")
    assert tflite._converted_form(quantized, "int8", None) is quantized


def test_int8_needs_representative_images(run, tmp_path):
    with pytest.raises(InputError, match=r"int8 needs representative training images"):
        tflite.convert_tflite(run.model, tmp_path / "a.tflite", "int8")
    assert not list(tmp_path.iterdir())


def test_a_model_in_another_form_is_refused(run):
    model = deployed(run.model)
    with pytest.raises(InputError, match=r"int8 takes .* QuantizedLayers, got one of DeployLayers"):
        tflite.convert(model, [1], "int8")
    with pytest.raises(InputError, match=r"mode must be one of float32, .*, got 'int4'"):
        tflite.convert(model, [1], "int4")
    with pytest.raises(InputError, match=r"1 to 4, got 5"):
        tflite.convert(model, [5], "float32")


def test_a_calibrated_file_has_the_temperatures_in_its_graph(run, reference, tmp_path):
    images, leaf_logits = reference
    path = tmp_path / "calibrated.tflite"
    data = {"test": run.batches("test"), "validation": run.batches("validation")}
    tflite.convert_tflite(run.model, path, calibrate=True, coverage=0.8, report=str, **data)
    exported = load(path)
    calibration = exported.manifest.calibration
    assert (calibration.applied, calibration.coverage) == (True, 0.8)
    session = exported.session(images)
    for size, temperature in enumerate(calibration.temperatures, start=1):
        assert abs(np.log(temperature)) > 0.01
        expected = special.softmax(leaf_logits[:, :size].mean(axis=1) / temperature, axis=-1)
        np.testing.assert_allclose(next(iter(session))[1], expected, atol=1e-4)
    np.testing.assert_allclose(exported.predict(images).probabilities, expected, atol=1e-4)
    validation, labels = next(iter(run.data_set.evaluation_batches("validation", 180)))
    answers = exported.predict(validation.numpy()).probabilities
    held = calibration.sets(answers, 4, "lac")[np.arange(180), labels.numpy()]
    assert held.mean() == pytest.approx(0.8, abs=0.02)


def test_a_file_s_limits_are_of_its_own_answers(files, run):
    """Rounded to integers, answers differ from the live model's."""
    exported = load(files / "int8.tflite")
    calibration = exported.manifest.calibration
    assert not calibration.applied
    images, labels = next(iter(run.data_set.evaluation_batches("validation", 180)))
    session = exported.session(images.numpy())
    for size, probabilities in session:
        held = calibration.sets(probabilities, size)[np.arange(180), labels.numpy()]
        assert held.mean() == pytest.approx(0.9, abs=0.02)
