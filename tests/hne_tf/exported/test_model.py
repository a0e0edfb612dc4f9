"""A SavedModel's folder and a TFLite file are one kind of thing."""

import dataclasses
import doctest
import inspect
import itertools
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

import hne_tf as hne
from hne_tf.errors import InputError
from hne_tf.export import signatures
from hne_tf.exported import model, session, tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import ExportedModel, load
from hne_tf.exported.profiling import latency, profile
from hne_tf.exported.saved_model import SavedModel
from hne_tf.exported.steps import RunnableSignature, SignatureInput, walk
from hne_tf.exported.tflite_model import TFLiteModel
from hne_tf.exported.versions import MANIFEST
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures.resnet import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.tree import Tree

SPEC = ImageSpec((8, 8, 1), tuple("0123456789"), (120.0,), (70.0,))
TREE = Tree((1, 2, 2))
SIZES = (1, 2, 4)
DESCRIPTION = Manifest.of_tree(TREE, "digits", SPEC.class_names, SPEC.shape, mode="float32")


@pytest.fixture(scope="module")
def live():
    keras.utils.set_random_seed(0)
    resnet = ResNet("basic", (3, 4, 5), (1, 1, 1), (1, 2, 1), stem_width=3)
    return TreeEnsemble(resnet, TREE, SPEC, DeployLayers())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, *SPEC.shape), np.uint8)


@pytest.fixture(scope="module")
def folder(live, tmp_path_factory):
    """`digits`, with version 1 and a TFLite file beside it."""
    folder = tmp_path_factory.mktemp("models")
    version = folder / "digits/1"
    signatures.save(signatures.signatures(live, SIZES), str(version))
    (version / MANIFEST).parent.mkdir()
    (version / MANIFEST).write_text(DESCRIPTION.to_text())
    names = [each.name for each in DESCRIPTION.signatures]
    names += [step.signature for step in DESCRIPTION.steps]
    converter = tf.lite.TFLiteConverter.from_saved_model(str(version), signature_keys=names)
    tflite_file.write(folder / "digits.tflite", converter.convert(), DESCRIPTION)
    return folder


@pytest.fixture(scope="module", params=["digits", "digits.tflite"])
def exported(request, folder):
    return load(folder / request.param)


@pytest.fixture(scope="module")
def leaf_probabilities(live, images):
    """What the ensemble of each size answers, computed anew."""
    logits = np.asarray(live(images, training=False))
    return {n: special.softmax(logits[:, :n].mean(axis=1), axis=-1) for n in range(1, 5)}


# Both forms.


def test_a_model_tells_what_it_is(exported):
    assert exported.sizes == SIZES
    assert exported.class_names == SPEC.class_names
    assert exported.image_shape == SPEC.shape
    assert exported.manifest.tree == TREE


@pytest.mark.parametrize("size", [1, 2, 3, 4, None])
def test_every_size_answers_whether_or_not_it_was_exported(
    exported, images, leaf_probabilities, size
):
    prediction = exported.predict(images, size)
    answered = size or 4
    assert prediction.sizes.tolist() == [answered] * 2
    np.testing.assert_allclose(prediction.probabilities, leaf_probabilities[answered], atol=1e-4)
    assert prediction.elapsed_ms > 0


def test_tensors_are_taken_as_arrays_are(exported, images):
    expected = exported.predict(images).probabilities
    np.testing.assert_array_equal(exported.predict(tf.constant(images)).probabilities, expected)


def test_a_session_walks_to_every_size_and_its_times_are_the_models(
    exported, images, leaf_probabilities
):
    for size, probabilities in exported.session(images):
        np.testing.assert_allclose(probabilities, leaf_probabilities[size], atol=1e-4)
    assert all(exported.times.estimate_ms(size, 2) < np.inf for size in range(1, 5))


def test_a_deadline_that_is_far_away_leaves_time_for_all(exported, images, leaf_probabilities):
    exported.warm_up(batch_size=2, repeats=1)
    prediction = exported.predict(images, deadline_ms=1e9)
    assert prediction.sizes.tolist() == [4, 4]
    np.testing.assert_allclose(prediction.probabilities, leaf_probabilities[4], atol=1e-4)


def test_signatures_are_called_by_name(exported, images, leaf_probabilities):
    outputs = exported.signature("ensemble_2").run({"images": images})
    assert outputs.keys() == {"logits", "probabilities"}
    np.testing.assert_allclose(outputs["probabilities"], leaf_probabilities[2], atol=1e-4)
    assert exported.signature("ensemble_2") is exported.signature("ensemble_2")
    assert {"ensemble_1", "step_4"} <= exported.signature_names()
    with pytest.raises(InputError, match=r"signatures of its manifest, got .* without ensemble_3"):
        exported.signature("ensemble_3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": 0}, "from 1 to 4, got 0"),
        ({"size": 5}, "from 1 to 4, got 5"),
        ({"size": True}, "from 1 to 4, got True"),
        ({"deadline_ms": 0}, "deadline_ms must be a number above 0"),
        ({"size": 1, "deadline_ms": 5}, "one of size and deadline_ms"),
    ],
)
def test_what_cannot_be_asked(exported, images, arguments, words):
    with pytest.raises(InputError, match=words):
        exported.predict(images, **arguments)


@pytest.mark.parametrize(
    "wrong", [np.zeros((8, 8, 1), np.uint8), np.zeros((1, 8, 8, 1)), [], "images"]
)
def test_images_that_a_model_cannot_take(exported, wrong):
    for arguments in ({}, {"size": 3}, {"deadline_ms": 5}):
        with pytest.raises(InputError, match="images must be uint8 of shape"):
            exported.predict(wrong, **arguments)


def test_latencies_are_measured_of_every_size(exported):
    measured = latency.measure(exported, batch_sizes=(1, 2), runs=2)
    assert [(row.batch_size, row.signature) for row in measured.measurements] == list(
        itertools.product([1, 2], [f"ensemble_{size}" for size in SIZES])
    )
    assert {row.threads for row in measured.measurements} == {exported.threads}


def test_a_walk_gives_what_every_step_does(exported, images, leaf_probabilities):
    outputs = walk(exported.steps, images)
    assert list(outputs) == [1, 2, 3, 4]
    assert outputs[1].keys() == {"running_sum", "probabilities", "cache_0", "cache_1"}
    for size, expected in leaf_probabilities.items():
        np.testing.assert_allclose(outputs[size]["probabilities"], expected, atol=1e-4)


# Deadlines, on a clock that only the model moves.


class TimedModel(ExportedModel):
    """Each signature takes as many milliseconds as it is told."""

    has_own_threads = has_onednn = name = mode = default_threads = threads = None
    parts = check_revisable = revise = None

    def __init__(self, takes_ms):
        self.now = 100.0
        self.takes_ms = takes_ms
        super().__init__("timed", DESCRIPTION, clock=lambda: self.now)

    def signature_names(self):
        return frozenset(self.takes_ms)

    def _load_signature(self, name):
        from_images = name.startswith("ensemble") or name == "step_1"
        names = ["images"] if from_images else ["cache", "running_sum"]
        shapes = {"images": (None, *SPEC.shape), "cache": (None, 1), "running_sum": (None, 10)}
        types = {"images": np.uint8, "cache": np.float32, "running_sum": np.float32}
        inputs = tuple(SignatureInput(n, shapes[n], np.dtype(types[n])) for n in names)

        def run(values):
            self.now += self.takes_ms[name] / 1000
            batch = len(next(iter(values.values())))
            caches = {f"cache_{block}": np.zeros([batch, 1], np.float32) for block in (0, 1)}
            answer = np.full([batch, 10], 0.1, np.float32)
            return {"running_sum": answer, "probabilities": answer, **caches}

        return RunnableSignature(inputs, run)


@pytest.fixture
def timed():
    return TimedModel({**{f"step_{n}": 10.0 for n in range(1, 5)}, "ensemble_4": 25.0})


def test_as_many_leaves_as_fit_are_computed(timed, images):
    timed.warm_up(batch_size=2, repeats=3)
    for deadline_ms, size in ((5, 1), (19, 1), (31, 3), (1000, 4)):
        prediction = timed.predict(images, deadline_ms=deadline_ms)
        assert prediction.sizes.tolist() == [size] * 2
        assert prediction.elapsed_ms == pytest.approx(10 * size)


def test_answers_by_size_tell_their_time_too(timed, images):
    assert timed.predict(images).elapsed_ms == pytest.approx(25)
    assert timed.predict(images, size=3).elapsed_ms == pytest.approx(30)


def test_sessions_learn_from_each_other(timed, images):
    timed.warm_up(batch_size=2, repeats=3)
    timed.takes_ms.update({f"step_{n}": 30.0 for n in range(1, 5)})
    for _ in range(40):
        timed.session(images).run()
    assert timed.predict(images, deadline_ms=70).sizes.tolist() == [2, 2]


# Where models are found.


def test_a_path_of_a_model_a_version_or_a_file_is_opened(folder):
    assert load(folder / "digits").path == folder / "digits/1"
    assert load(str(folder / "digits/1")).path == folder / "digits/1"
    assert hne.load(folder / "digits.tflite").path == folder / "digits.tflite"
    names = [load(folder / name) for name in ("digits", "digits.tflite")]
    assert [(each.name, each.mode) for each in names] == [
        ("digits/1", "SavedModel"),
        ("digits", "float32"),
    ]


def test_a_file_needs_no_suffix(folder, tmp_path, images):
    path = tmp_path / "digits.model"
    path.write_bytes((folder / "digits.tflite").read_bytes())
    assert load(path).predict(images).sizes.tolist() == [4, 4]


def test_what_is_no_model_is_refused(folder, tmp_path):
    (tmp_path / "weights.npz").touch()
    (tmp_path / "bare" / MANIFEST).parent.mkdir(parents=True)
    (tmp_path / "bare" / MANIFEST).write_text(DESCRIPTION.to_text())
    cut = tmp_path / "cut.tflite"
    cut.write_bytes((folder / "digits.tflite").read_bytes()[:-100])
    for path, words in (
        (tmp_path / "absent", "which is not there"),
        (tmp_path / "weights.npz", "must be a TFLite file"),
        (tmp_path, "hold such folders"),
        (tmp_path / "bare", r"must hold saved_model\.pb"),
        (cut, "cut off"),
    ):
        with pytest.raises(InputError, match=words) as refusal:
            load(path)
        assert str(path) in str(refusal.value)


def test_threads_are_those_of_a_file_or_of_the_process(folder):
    assert load(folder / "digits.tflite", threads=2).threads == 2
    assert load(folder / "digits.tflite").threads == 1
    for threads in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="threads must be 1 or more"):
            load(folder / "digits.tflite", threads=threads)
    with pytest.raises(InputError, match="threads are set for a TFLite file"):
        load(folder / "digits", threads=1)


def test_a_graph_that_is_damaged_is_refused_when_it_is_first_needed(folder, tmp_path, images):
    version = tmp_path / "1"
    (version / MANIFEST).parent.mkdir(parents=True)
    (version / MANIFEST).write_text(DESCRIPTION.to_text())
    (version / "saved_model.pb").write_bytes(b"not a protocol buffer")
    exported = load(version)
    assert exported.sizes == SIZES
    with pytest.raises(InputError, match="must hold a SavedModel that loads") as refusal:
        exported.predict(images)
    assert "\n" not in str(refusal.value)
    path = tmp_path / "odd.tflite"
    tflite_file.write(path, b"\x1c\x00\x00\x00TFL3" + bytes(100), DESCRIPTION)
    with pytest.raises(InputError, match="must be one that LiteRT loads") as refusal:
        load(path).predict(images)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("form", ["digits", "digits.tflite"])
def test_steps_without_a_signature_are_named(folder, tmp_path, images, form):
    more = Manifest.of_tree(Tree((1, 6)), "digits", SPEC.class_names, SPEC.shape)
    if form == "digits":
        exported = type(load(folder / form))(folder / "digits/1", more)
    else:
        path = tmp_path / "more.tflite"
        tflite_file.write(path, tflite_file.read_flatbuffer(folder / form), more)
        exported = load(path)
    with pytest.raises(InputError, match=r"signatures of its manifest, got .* without step_5"):
        exported.session(images)


def test_a_file_is_computed_without_tensorflow(folder):
    program = (
        "import sys, numpy, hne_tf as hne\n"
        f"model = hne.load({str(folder / 'digits.tflite')!r})\n"
        "images = numpy.zeros([1, *model.image_shape], numpy.uint8)\n"
        "print(model.predict(images, size=3).sizes, 'tensorflow' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.stdout.strip() == "[3] False", output.stderr


# Manifests are replaced.


def test_a_version_is_published_again_and_a_file_is_replaced(folder, tmp_path):
    changed = dataclasses.replace(DESCRIPTION, record={"note": "again"})
    for name in ("digits/1/saved_model.pb", f"digits/1/{MANIFEST}", "digits.tflite"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    version, file = load(tmp_path / "digits"), load(tmp_path / "digits.tflite")
    assert version.revise(changed) == tmp_path / "digits/2"
    assert file.revise(changed) == file.path
    assert load(tmp_path / "digits/1").manifest == DESCRIPTION
    for path in (tmp_path / "digits", file.path):
        assert load(path).manifest.record == {"note": "again"}
    (flatbuffer,) = load(file.path).parts()
    assert flatbuffer == tflite_file.read_flatbuffer(folder / "digits.tflite")


def test_only_a_folder_with_a_number_is_published_again(tmp_path, folder):
    copied = tmp_path / "copy"
    (copied / MANIFEST).parent.mkdir(parents=True)
    (copied / MANIFEST).write_text(DESCRIPTION.to_text())
    (copied / "saved_model.pb").touch()
    with pytest.raises(InputError, match="a number"):
        load(copied).check_revisable()
    load(folder / "digits").check_revisable()
    load(folder / "digits.tflite").check_revisable()


# The examples in the documentation.


def examples():
    finder = doctest.DocTestFinder()
    found = itertools.chain(*map(finder.find, (model, profile, session)))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_run(example, folder, images, tmp_path, monkeypatch, capsys):
    version = tmp_path / "models/digits/1"
    for path in (folder / "digits/1").rglob("*"):
        if path.is_file():
            target = version / path.relative_to(folder / "digits/1")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    # Models are profiled in processes of their own, one per number of threads.
    monkeypatch.setattr(SavedModel, "default_threads", 1)
    monkeypatch.setenv("PYTHONPATH", str(pathlib.Path(hne.__file__).parents[1]))
    example.globs.update(hne=hne, images=images, model=hne.load("models/digits"))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_examples_are_found():
    names = {example.name for example in examples()}
    assert {
        "hne_tf.exported.model.load",
        "hne_tf.exported.model.ExportedModel.predict",
        "hne_tf.exported.session.AnytimeSession",
        "hne_tf.exported.profiling.profile.profile",
    } <= names


def test_both_forms_do_all_that_is_promised():
    for form in (SavedModel, TFLiteModel):
        assert not inspect.isabstract(form)
        assert issubclass(form, ExportedModel)
