import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import prediction_log_pb2

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.evaluation import cost
from hne_tf.export import exporter, signatures, tflite_verification
from hne_tf.exported.interface import ModelInput
from hne_tf.exported.manifest import read_manifest
from hne_tf.exported.measurements import Accuracy, EarlyStopping
from hne_tf.exported.model import load
from hne_tf.exported.versions import LITERT, WARM_UP_REQUESTS
from hne_tf.models import folding, weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.training import trained
from hne_tf.tree import Tree


@pytest.fixture(scope="module")
def run(trained_workdir):
    return trained.restore(trained_workdir)


@pytest.fixture(scope="module")
def small(run):
    """A model of two leaves with fresh weights."""
    resnet = ResNet("basic", (4,), (1,), (1,), stem_width=4)
    return TreeEnsemble(resnet, Tree((2,)), run.model.images)


@pytest.fixture(scope="module")
def version(run, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "tiny"
    return exporter.export(
        run.model,
        base,
        test=run.batches("test"),
        validation=run.batches("validation"),
        batch_sizes=(1, 2),
        record=run.record,
        report=lambda line: None,
    )


@pytest.fixture(scope="module")
def manifest(version):
    return read_manifest(version)


@pytest.fixture(scope="module")
def loaded(version):
    return tf.saved_model.load(str(version)).signatures


@pytest.fixture(scope="module")
def images(run):
    return next(iter(run.data_set.evaluation_batches("test", 8)))[0]


def test_the_first_version_is_1(version):
    assert version.name == "1"
    assert [entry.name for entry in version.parent.iterdir()] == ["1"]
    assert not (version / "verification.npz").exists()


def test_every_size_answers_as_the_mean_of_its_leaves(run, loaded, images):
    leaf_logits = run.model(images, training=False).numpy()
    for size in (1, 2, 4):
        answer = loaded[f"ensemble_{size}"](images=images)
        logits = leaf_logits[:, :size].mean(axis=1)
        exponents = np.exp(logits)
        np.testing.assert_allclose(answer["logits"], logits, atol=1e-4)
        np.testing.assert_allclose(
            answer["probabilities"], exponents / exponents.sum(axis=1, keepdims=True), atol=1e-4
        )


def test_the_default_is_the_full_ensemble(loaded, images):
    full = loaded["ensemble_4"](images=images)["logits"]
    np.testing.assert_allclose(loaded["serving_default"](images=images)["logits"], full, atol=1e-6)


def test_steps_follow_the_manifest_to_every_size(run, loaded, manifest, images):
    leaf_logits = run.model(images, training=False).numpy()
    known = {"images": images}
    for size, step in enumerate(manifest.steps, start=1):
        inputs = {step.input: known[step.starts_from]}
        if size > 1:
            inputs["running_sum"] = known["running_sum"]
        outputs = loaded[step.signature](**inputs)
        assert outputs.keys() == {"running_sum", "probabilities", *step.caches}
        known |= outputs
        np.testing.assert_allclose(
            outputs["running_sum"], leaf_logits[:, :size].sum(axis=1), atol=1e-3
        )


def test_the_manifest_tells_what_was_measured(run, manifest):
    assert manifest.model == "tiny"
    assert manifest.tree == Tree((1, 2, 2))
    assert manifest.sizes == (1, 2, 4)
    assert manifest.classes == tuple("0123456789")
    assert manifest.input == ModelInput("images", "uint8", (None, 8, 8, 1))
    measured = run.evaluate("test")
    accuracies = {row["size"]: row["accuracy"] for row in measured["sizes"]}
    assert manifest.accuracy == Accuracy("test", 360, accuracies)
    assert manifest.cost == cost.per_size(run.model, [1, 2, 4])
    rows = manifest.latency.measurements
    assert {(row.signature, row.batch_size) for row in rows} == {
        (f"ensemble_{size}", batch) for size in (1, 2, 4) for batch in (1, 2)
    }
    assert all(0 < row.p50_ms <= row.p95_ms <= row.p99_ms for row in rows)
    assert manifest.latency.hardware["cores"] >= 1
    assert manifest.early_stopping == EarlyStopping.from_json(measured["early_stopping"])
    assert manifest.record == run.record
    assert manifest.versions.keys() == {"hne_tf", "tensorflow", "keras"}


@pytest.mark.slow
def test_thresholds_can_be_of_another_rule(run, tmp_path):
    data = {"test": run.batches("test"), "validation": run.batches("validation")}
    folder = exporter.export(run.model, tmp_path / "m", stopping_rule="margin", report=str, **data)
    measured = run.evaluate("test")["early_stopping_by_rule"]["margin"]
    found = read_manifest(folder).early_stopping
    assert found == EarlyStopping.from_json(measured)
    assert found.rule == "margin"
    with pytest.raises(InputError, match=r"stopping rule must be one of confidence, .* got 'luck'"):
        exporter.export(run.model, tmp_path / "n", stopping_rule="luck")
    assert not (tmp_path / "n").exists()


@pytest.mark.slow
def test_a_calibrated_model_has_the_temperatures_in_its_graph(run, tmp_path):
    data = {"test": run.batches("test"), "validation": run.batches("validation")}
    for name, calibrate in (("plain", False), ("calibrated", True)):
        options = {"calibrate": calibrate, "coverage": 0.8, "report": str}
        exporter.export(run.model, tmp_path / name, **options, **data)
    plain, calibrated = (load(tmp_path / name) for name in ("plain", "calibrated"))
    images, labels = next(iter(run.data_set.evaluation_batches("validation", 180)))
    images, labels = images.numpy(), labels.numpy()
    given, applied = plain.manifest.calibration, calibrated.manifest.calibration
    assert (given.applied, applied.applied) == (False, True)
    assert (given.coverage, given.examples) == (0.8, 180)
    assert given.temperatures == pytest.approx(applied.temperatures)
    assert max(abs(np.log(given.temperatures))) > 0.1
    leaf_logits = run.model(images, training=False).numpy()
    session = calibrated.session(images)
    for size, temperature in enumerate(applied.temperatures, start=1):
        expected = special.softmax(leaf_logits[:, :size].mean(axis=1) / temperature, axis=-1)
        own = plain.predict(images, size).probabilities
        np.testing.assert_allclose(given.probabilities(own, size), expected, atol=1e-4)
        answer = calibrated.predict(images, size).probabilities
        np.testing.assert_allclose(answer, expected, atol=1e-4)
        assert applied.probabilities(answer, size) is answer
        _, walked = next(iter(session))
        np.testing.assert_allclose(walked, expected, atol=1e-4)
        # On the images that limits are fitted on, sets cover what was asked.
        for calibration, probabilities in ((given, own), (applied, answer)):
            held = calibration.sets(probabilities, size)[np.arange(180), labels]
            assert held.mean() == pytest.approx(0.8, abs=0.02)
    # Thresholds are of the probabilities that clients see.
    target = calibrated.manifest.early_stopping.curve[2].target_multiply_adds
    costs = [each.multiply_adds for each in cost.per_size_walked(run.model).values()]
    for model in (plain, calibrated):
        limits = model.manifest.thresholds(target)
        sizes = model.session(images).run(confidence=limits).sizes
        mean = np.mean([costs[size - 1] for size in sizes])
        assert 0.9 * target < mean <= 1.02 * target


def test_a_model_is_calibrated_on_validation_images(run, tmp_path):
    with pytest.raises(InputError, match="calibrated on validation images, got none"):
        exporter.export(run.model, tmp_path / "m", test=run.batches("test"), calibrate=True)
    with pytest.raises(InputError, match=r"coverage must lie between 0 and 1, got 1\.5"):
        exporter.export(run.model, tmp_path / "m", coverage=1.5)
    assert not (tmp_path / "m").exists()


def test_warm_up_requests_cover_every_signature_and_batch_and_run(version, loaded):
    seen = set()
    for record in tf.data.TFRecordDataset(str(version / WARM_UP_REQUESTS)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        inputs = {
            name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()
        }
        loaded[request.model_spec.signature_name](**inputs)
        assert request.model_spec.name == "tiny"
        seen |= {(request.model_spec.signature_name, len(value)) for value in inputs.values()}
    assert seen == {(name, batch) for name in loaded for batch in (1, 2)}


def test_weights_are_constants_stored_once_per_signature_that_uses_them(version, manifest):
    assert not (version / "variables/variables.data-00000-of-00001").read_bytes().strip(b"\0")[400:]
    costs = {size: 4 * each.parameters for size, each in manifest.cost.items()}
    # The steps together use every weight once.
    expected = costs[1] + costs[2] + costs[4] + costs[4]
    graph_only = 22_000 * len(manifest.steps + manifest.signatures)
    assert expected < (version / "saved_model.pb").stat().st_size < expected + graph_only


@pytest.mark.parametrize("shape", [(1, 64), (1, 9, 9, 1), (1, 8, 8, 3)])
@pytest.mark.parametrize("signature", ["ensemble_4", "step_1"])
def test_images_of_another_shape_are_an_error_in_the_session_loader(version, signature, shape):
    # TF Serving compares no shapes itself.
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta_graph = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        definition = meta_graph.signature_def[signature]
        options = config_pb2.CallableOptions(
            feed=[definition.inputs["images"].name],
            fetch=[definition.outputs["probabilities"].name],
        )
        # Unlike session.run, this leaves the check to the graph.
        call = session._make_callable_from_options(options)
        with pytest.raises(tf.errors.InvalidArgumentError):
            call(np.zeros(shape, np.uint8))


def test_an_average_of_probabilities_is_exported_as_such(run, images, tmp_path):
    model = exporter.deployed(run.model)
    model.average = "probabilities"
    path = str(tmp_path / "model")
    signatures.save(signatures.signatures(model, [2]), path)
    answer = tf.saved_model.load(path).signatures["ensemble_2"](images=images)
    leaf_logits = run.model(images, training=False).numpy()[:, :2]
    exponents = np.exp(leaf_logits)
    mean = (exponents / exponents.sum(axis=-1, keepdims=True)).mean(axis=1)
    np.testing.assert_allclose(answer["probabilities"], mean, atol=1e-5)
    np.testing.assert_allclose(answer["logits"], np.log(mean), atol=1e-3)


def test_a_model_that_answers_otherwise_is_not_published(small, monkeypatch, tmp_path):
    def damaged(weights):
        folded = folding_fold(weights)
        folded["block0/node1/head/bias"] += 1e-3
        return folded

    folding_fold = folding.fold
    monkeypatch.setattr(folding, "fold", damaged)
    with pytest.raises(InputError, match=r"export refused.*ensemble_2"):
        exporter.export(small, tmp_path / "tiny", report=lambda line: None)
    assert list((tmp_path / "tiny").iterdir()) == []


@pytest.mark.slow
def test_a_model_whose_sums_are_fused_is_not_published(run, monkeypatch, tmp_path):
    monkeypatch.setattr(signatures, "ServedLayers", DeployLayers)
    with pytest.raises(InputError, match=r"export refused.*not safe for two requests at a time"):
        exporter.export(run.model, tmp_path / "tiny", report=lambda line: None)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_without_data_a_model_is_proved_on_random_images(small, tmp_path):
    lines = []
    folder = exporter.export(small, str(tmp_path / "tiny"), sizes=[1], report=lines.append)
    manifest = read_manifest(folder)
    assert manifest.sizes == (1, 2)
    assert (manifest.accuracy, manifest.early_stopping, manifest.record) == (None, None, {})
    assert lines[-1] == "verified every signature on 32 random images in a fresh process"


@pytest.mark.slow
def test_a_grouped_model_is_exported_as_its_branched_form(small, tmp_path):
    grouped = GroupedEnsemble(small.architecture, small.tree, small.images)
    weights.load(grouped, weights.read(small))
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 1), np.uint8)
    labels = keras.utils.to_categorical(np.arange(5), 10)
    folder = exporter.export(grouped, tmp_path / "tiny", test=(images, labels), report=str)
    answer = tf.saved_model.load(str(folder)).signatures["ensemble_2"](images=images)
    np.testing.assert_allclose(
        answer["probabilities"], small.probabilities(images, size=2), atol=1e-4
    )
    assert read_manifest(folder).accuracy.examples == 5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ((np.zeros([2, 8, 8, 1]), np.zeros(2)), "uint8 .* got float64"),
        ((np.zeros([2, 8, 8], np.uint8), np.zeros(2)), r"8, 8, 1\], got uint8 of \[2, 8, 8\]"),
        ((np.zeros([2, 8, 8, 1], np.uint8), np.zeros(3)), "of one length"),
        ((np.zeros([0, 8, 8, 1], np.uint8), np.zeros(0)), "at least one image"),
        (np.zeros([2, 8, 8, 1], np.uint8), "pair"),
    ],
)
def test_data_that_the_model_cannot_take_publish_nothing(small, data, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        exporter.export(small, tmp_path / "tiny", test=data, report=str)
    assert list((tmp_path / "tiny").iterdir()) == []


def test_another_keras_model_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    with pytest.raises(InputError, match=r"must be an hne_tf\.TreeEnsemble, got Sequential"):
        exporter.export(model, tmp_path / "tiny")


@pytest.mark.slow
def test_a_version_carries_its_tflite_file(small, tmp_path):
    folder = exporter.export(small, tmp_path / "tiny", litert=True, report=str, batch_sizes=(1, 2))
    saved, file = load(folder), load(folder / LITERT)
    manifest = saved.manifest
    assert file.signature_names() == saved.signature_names() - {"serving_default"}
    images = np.random.default_rng(1).integers(0, 256, (3, *small.images.shape), np.uint8)
    for name in ("ensemble_1", "ensemble_2"):
        of_file = file.signature(name).run({"images": images})
        for output, expected in saved.signature(name).run({"images": images}).items():
            np.testing.assert_allclose(of_file[output], expected, atol=1e-5)
    measured = manifest.litert
    keys = {(row.signature, row.batch_size) for row in manifest.latency.measurements}
    assert {(row.signature, row.batch_size) for row in measured.measurements} == keys
    rows = (*measured.latency.measurements, *measured.latency.other_threads)
    assert {row.threads for row in rows} == {1, hardware.cores()}
    assert {row.threads for row in measured.measurements} == {measured.threads}


@pytest.mark.slow
def test_a_tflite_file_that_answers_otherwise_is_not_published(small, tmp_path, monkeypatch):
    monkeypatch.setitem(tflite_verification.TOLERANCES, "float32", 0.0)
    with pytest.raises(InputError, match="export refused"):
        exporter.export(small, tmp_path / "tiny", litert=True, report=str)
    assert not list((tmp_path / "tiny").iterdir())


@pytest.mark.slow
def test_latency_is_measured_with_the_threads_asked_for(small, tmp_path):
    folder = exporter.export(small, tmp_path / "tiny", threads=[1], report=str)
    measured = load(folder).manifest.latency
    rows = (*measured.measurements, *measured.other_threads, *measured.other_onednn)
    assert {row.threads for row in rows} == {1, hardware.cores()}


def test_threads_to_measure_with_are_one_or_more(small, tmp_path):
    with pytest.raises(InputError, match=r"threads must be 1 or more, got \(0,\)"):
        exporter.export(small, tmp_path / "tiny", threads=[0])
