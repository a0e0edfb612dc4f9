"""The page on phones: its code gives the pixels of evaluation and calls signatures that exist."""

import itertools
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

import hne_tf
from hne_tf.data.pixels import Pixels, decode, read_bytes
from hne_tf.exported import tflite_file

MOBILE = (pathlib.Path(__file__).parents[1] / "docs/mobile.md").read_text()


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", MOBILE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of the page have been: models/cifar10_cpu.tflite, and a photo."""
    folder = tmp_path_factory.mktemp("docs")
    model = hne_tf.from_pretrained("cifar10_cpu", deploy=True)
    hne_tf.convert_tflite(model, folder / "models/cifar10_cpu.tflite", report=str)
    Image.fromarray(photo()).save(folder / "photo.jpg")
    return folder


def photo():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def run(code):
    """The names that a page's code defines."""
    names = {}
    exec(compile(code, "docs/mobile.md", "exec"), names)
    return names


@pytest.mark.parametrize("code", fenced("python"), ids=["resize", "litert", "anytime"])
def test_python_runs(code, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run(code)
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^print\(.*  # (.*)$", code, re.MULTILINE)
    if promised:
        assert printed == promised
    else:
        assert re.search(r"\[\d\]", printed[-1]), "a class is printed"


def test_the_code_for_phones_gives_the_pixels_of_evaluation(
    folder, monkeypatch, tmp_path, turned, capsys
):
    """In every orientation, cropped or not, grey or coloured, smaller or larger."""
    monkeypatch.chdir(folder)
    image_of = run(fenced("python")[1])["image_of"]
    for orientation, pixels in itertools.product(
        range(1, 9), (Pixels(32, 32), Pixels(8, 12, 1, 0.875), Pixels(99, 80, 3, 0.5))
    ):
        stored, exif = turned(Image.fromarray(photo()), orientation)
        for name in ("photo.jpg", "photo.png"):
            stored.save(tmp_path / name, exif=exif)
            got = image_of(tmp_path / name, pixels.to_json())
            expected = pixels.image(decode(read_bytes(tmp_path / name)))
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [(7, 9), (48, 64), (100, 50), (1, 1)])
def test_the_formula_of_the_resize_is_that_of_evaluation(size, capsys):
    resize_axis = run(fenced("python")[0])["resize_axis"]
    rows = resize_axis(photo().astype(float), size[0])
    resized = resize_axis(rows.swapaxes(0, 1), size[1]).swapaxes(0, 1)
    got = Pixels(*size).image(Image.fromarray(photo()))
    assert np.abs(got - np.rint(resized)).max() <= 1


def test_every_rule_is_explained():
    table = set(re.findall(r"^\| `([a-z_]+)` \|", MOBILE, re.MULTILINE))
    assert set(Pixels(8, 8).to_json()) <= table


def test_other_languages_call_signatures_that_are_there(folder):
    manifest = tflite_file.read_manifest(folder / "models/cifar10_cpu.tflite")
    outputs = {"logits", "probabilities"}
    classifier, photo_reader = fenced("kotlin")
    for code in (classifier, *fenced("swift")):
        assert re.search(r'"ensemble_(\$size|\\\(size\))"', code)
        quoted = set(re.findall(r'"([a-z]+)"', code))
        assert "images" in quoted
        assert quoted & outputs
        assert quoted <= outputs | {"images"}
    assert set(re.findall(r'"([a-z_]+)"', photo_reader)) == {"central_crop", "size"}
    assert manifest.steps[0].input == "images"
