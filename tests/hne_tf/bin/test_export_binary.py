import json
import pathlib

import numpy as np
import pytest

import hne_tf
from hne_tf.bin import export
from hne_tf.errors import InputError
from hne_tf.exported.manifest import read_manifest
from hne_tf.training import trained


@pytest.fixture(scope="module")
def exported(trained_workdir, tmp_path_factory):
    """Output of an export with weights, and its folder."""
    folder = tmp_path_factory.mktemp("exported")
    base, weights = folder / "tiny", folder / "tiny.npz"
    code = export.run(
        [
            f"--workdir={trained_workdir.path}",
            f"--model_base_path={base}",
            "--sizes=1,3",
            "--batch_sizes=1,2",
            "--stopping_rule=agreement",
            f"--weights={weights}",
        ]
    )
    assert code == 0
    return folder


def test_flags_reach_the_export(exported):
    manifest = read_manifest(exported / "tiny/1")
    assert manifest.sizes == (1, 3, 4)
    assert manifest.batch_sizes == (1, 2)
    assert manifest.early_stopping.rule == "agreement"


def test_written_weights_come_back_as_the_trained_model(exported, trained_workdir):
    run = trained.restore(trained_workdir)
    images, _ = next(iter(run.data_set.evaluation_batches("test", 8)))
    expected = run.model(images, training=False)
    model = hne_tf.from_pretrained(str(exported / "tiny.npz"))
    np.testing.assert_allclose(model(images, training=False), expected, atol=1e-5)
    folded = hne_tf.from_pretrained(str(exported / "tiny.npz"), deploy=True)
    np.testing.assert_allclose(folded(images, training=False), expected, atol=1e-4)
    assert len(folded.weights) < len(model.weights)
    assert model.images.class_names == tuple("0123456789")


def test_the_description_of_weights_holds_no_path_of_this_machine(exported):
    description = json.loads((exported / "tiny.json").read_text())
    assert description["config"]["data"]["data_dir"] == ""
    assert description["accuracy"]["by_size"].keys() == {"1", "3", "4"}


@pytest.mark.slow
def test_a_run_is_exported_with_another_average(exported, trained_workdir, tmp_path):
    flags = [f"--workdir={trained_workdir.path}", f"--model_base_path={tmp_path / 'cached'}"]
    assert export.run([*flags, "--average=cached_logits"]) == 0
    kept, plain = (hne_tf.load(path) for path in (tmp_path / "cached/1", exported / "tiny/1"))
    assert (kept.manifest.average, plain.manifest.average) == ("cached_logits", "logits")
    images = np.random.default_rng(0).integers(0, 256, (9, *kept.image_shape), np.uint8)
    sessions = [model.session(images) for model in (kept, plain)]
    surest = np.zeros(9)
    for (size, answers), (_, others) in zip(*sessions, strict=True):
        np.testing.assert_allclose(
            answers.max(axis=1), np.maximum(surest, others.max(axis=1)), rtol=1e-4
        )
        surest = answers.max(axis=1)
        np.testing.assert_allclose(
            sessions[0].leaf_outputs, sessions[1].leaf_outputs, atol=1e-4, err_msg=str(size)
        )


def test_an_unknown_pretrained_model_is_refused():
    with pytest.raises(InputError, match=r"pretrained model is one of .*, got 'vgg'"):
        hne_tf.from_pretrained("vgg")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version=1"], ["exists"]),
        (["--version=0"], ["positive", "0"]),
        (["--sizes=5"], ["1 to 4", "5"]),
        (["--sizes=one"], ["--sizes", "one"]),
        (["--batch_sizes=0"], ["1 or more", "0"]),
        (["--weights=tiny.h5"], [".npz", "tiny.h5"]),
        (["--average=last"], ["the last leaf alone in a tree", "last"]),
        (["--average=sum", "--weights=new.npz"], ["--weights", "without --average", "sum"]),
        (["--average=mode"], ["average must be one of logits,", "mode"]),
        (["--pretrained=cifar10_cpu"], ["one of --workdir and --pretrained", "cifar10_cpu"]),
        (["please"], ["only flags"]),
    ],
)
def test_bad_input_is_refused_in_one_line_and_the_export_is_kept(
    assert_refused, exported, trained_workdir, arguments, words
):
    def files():
        return sorted(pathlib.Path(exported).rglob("*"))

    before = files()
    flags = [f"--workdir={trained_workdir.path}", f"--model_base_path={exported / 'tiny'}"]
    assert_refused(export, [*flags, *arguments], *words)
    assert files() == before


def test_existing_weights_are_refused_before_anything_is_published(
    assert_refused, exported, trained_workdir
):
    flags = [f"--workdir={trained_workdir.path}", f"--model_base_path={exported / 'tiny'}"]
    assert_refused(export, [*flags, f"--weights={exported / 'tiny.npz'}"], "never overwritten")
    assert not (exported / "tiny/2").exists()
