"""The Python in the pages of docs/ runs as it stands there."""

import pathlib
import re

import pytest

import hne_tf
from hne_tf.export import tflite
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest

MOBILE = (pathlib.Path(__file__).parents[1] / "docs/mobile.md").read_text()


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", MOBILE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of the page have been: models/cifar10_cpu.tflite."""
    model = hne_tf.from_pretrained("cifar10_cpu", deploy=True)
    manifest = Manifest.of_tree(
        model.tree,
        "cifar10_cpu",
        model.images.class_names,
        model.images.shape,
        serving_default=False,
    )
    folder = tmp_path_factory.mktemp("docs")
    (folder / "models").mkdir()
    flatbuffer = tflite.convert(model, model.tree.sizes, "float32")
    tflite_file.write(folder / "models/cifar10_cpu.tflite", flatbuffer, manifest)
    return folder


@pytest.mark.parametrize("code", fenced("python"), ids=["litert", "anytime"])
def test_python_runs(code, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(code, "docs/mobile.md", "exec"), {})
    assert re.search(r"\[\d\]", capsys.readouterr().out), "a class is printed"


def test_other_languages_call_signatures_that_are_there(folder):
    manifest = tflite_file.read_manifest(folder / "models/cifar10_cpu.tflite")
    outputs = {"logits", "probabilities"}
    for language in ("kotlin", "swift"):
        (code,) = fenced(language)
        assert re.search(r'"ensemble_(\$size|\\\(size\))"', code)
        quoted = set(re.findall(r'"([a-z]+)"', code))
        assert "images" in quoted
        assert quoted & outputs
        assert quoted <= outputs | {"images"}
    assert manifest.steps[0].input == "images"
