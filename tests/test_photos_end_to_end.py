"""Digits as photos: evaluation, `hne-predict` and the phone code answer alike on every file."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image
from sklearn import datasets

from hne_tf.bin import predict
from hne_tf.data.pixels import Pixels, decode, read_bytes
from hne_tf.export import exporter
from hne_tf.exported.manifest import read_manifest
from hne_tf.exported.versions import MANIFEST, latest_version_path
from hne_tf.server import servable, service
from hne_tf.training import trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir

MOBILE = pathlib.Path(__file__).parents[1] / "docs/mobile.md"
PER_CLASS = {"train": 30, "test": 6}
# A photo is wide, with the digit in its middle.
SIZE = (80, 40)
KINDS = {"jpg": {"quality": 92}, "JPEG": {"quality": 92}, "png": {}, "webp": {}, "tif": {}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, turned):
    """An image folder of which every file is stored sideways, with EXIF orientation 6."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    digits = datasets.load_digits()
    for label in range(10):
        drawn = iter(digits.images[digits.target == label])
        for split, count in PER_CLASS.items():
            (root / split / str(label)).mkdir(parents=True)
            for number in range(count):
                digit = Image.fromarray((next(drawn) * 255 / 16).astype(np.uint8)).resize((40, 40))
                photo = Image.fromarray(rng.integers(0, 60, SIZE[::-1], np.uint8))
                photo.paste(digit, (20, 0))
                stored, exif = turned(photo.convert("RGB"), 6)
                suffix, options = list(KINDS.items())[number % len(KINDS)]
                path = root / split / str(label) / f"{number:03}.{suffix}"
                stored.save(path, exif=exif, **options)
    return root


@pytest.fixture(scope="module")
def run(folder, tiny_config, tmp_path_factory):
    config = tiny_config(
        data__name="image_folder",
        data__data_dir=str(folder),
        data__image_size=12,
        data__central_crop=0.875,
        data__train_examples=0,
        model__branching=(1, 2),
        model__resnet__widths=(8, 16),
        model__resnet__units=(1, 1),
        model__resnet__strides=(2, 2),
        training__epochs=16.0,
        training__validate_every_epochs=16.0,
        training__checkpoint_every_epochs=16.0,
    )
    workdir = Workdir(tmp_path_factory.mktemp("runs") / "photos")
    train(config, workdir, report=lambda line: None)
    return trained.restore(workdir, report=lambda line: None)


@pytest.fixture(scope="module")
def version(run, tmp_path_factory):
    base = tmp_path_factory.mktemp("models") / "photos"
    return exporter.export(run.model, base, test=run.batches("test"), report=lambda line: None)


@pytest.fixture(scope="module")
def evaluated(run):
    """The images of the test split, with the answers of all leaves to them."""
    ((images, labels),) = run.data_set.evaluation_batches("test", 1000).as_numpy_iterator()
    return images, labels, run.model(images, training=False).numpy().mean(axis=1).argmax(axis=1)


@pytest.fixture(scope="module")
def files(folder):
    """In the order of evaluation."""
    return sorted((folder / "test").glob("*/*"))


def test_predict_answers_as_evaluation_does(run, version, evaluated, files, run_binary):
    model = servable.Servable("photos", latest_version_path(version.parent))
    server = service.start(model)
    try:
        code, lines, _ = run_binary(
            predict,
            f"--server={server.address}",
            "--model=photos",
            f"--manifest={version / MANIFEST}",
            "--budget_ms=60000",
            *map(str, files),
        )
    finally:
        server.stop(grace_s=0)
    assert code == 0
    answers = [int(re.search(r": (\d) \(", line)[1]) for line in lines]
    _, labels, expected = evaluated
    assert answers == expected.tolist()
    accuracy = run.evaluate("test", sizes=[2])["sizes"][-1]["accuracy"]
    assert np.mean(answers == labels) == pytest.approx(accuracy)
    # Chance is 0.1: it is the pictures that are told apart.
    assert accuracy > 0.3


def test_the_phone_sees_what_evaluation_sees(version, evaluated, files):
    (code,) = (
        code
        for code in re.findall(
            r"^```python\n(.*?)^```", MOBILE.read_text(), re.DOTALL | re.MULTILINE
        )
        if "def image_of(" in code
    )
    names = {}
    exec(code.partition("\nmanifest = ")[0], names)
    pixels = read_manifest(version).pixels
    assert (pixels["central_crop"], pixels["size"]) == (0.875, [12, 12])
    got = [names["image_of"](path, pixels) for path in files]
    np.testing.assert_array_equal(got, evaluated[0])


def test_a_crop_and_a_turn_are_what_answers_hang_on(run, version, evaluated, files):
    """Or the tests above would prove nothing."""
    pictures = [decode(read_bytes(path)) for path in files]
    whole = np.stack([Pixels(12, 12).image(picture) for picture in pictures])
    pixels = Pixels.from_json(read_manifest(version).pixels)
    sideways = np.stack([pixels.image(Image.open(path)) for path in files])
    for images in (whole, sideways):
        answers = run.model(images, training=False).numpy().mean(axis=1).argmax(axis=1)
        assert (answers != evaluated[2]).mean() > 0.2
