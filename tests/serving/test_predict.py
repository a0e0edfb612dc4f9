"""The `hne-predict` binary, run in this process against a real server."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from hne_tf.bin import predict
from hne_tf.client.budget_client import BudgetClient
from hne_tf.client.latencies import Latencies
from hne_tf.client.metadata import MetadataSource
from hne_tf.data.pixels import Pixels

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def picture(tmp_path, images):
    path = tmp_path / "digit.png"
    Image.fromarray(images[0, ..., 0]).save(path)
    return path


@pytest.fixture
def ask(server, capsys):
    """Runs the binary; returns exit code and the lines it printed and complained."""

    def run(*arguments, model="digits", target=server.address):
        code = predict.run([f"--server={target}", f"--model={model}", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return run


@pytest.fixture
def estimates(monkeypatch):
    """Makes the measured latencies what a test says, whatever this machine is busy with."""

    def give(milliseconds):
        monkeypatch.setattr(BudgetClient, "measure", lambda self, images: None)
        made = Latencies.__init__
        monkeypatch.setattr(
            Latencies, "__init__", lambda self, prior: made(self, {1: milliseconds})
        )

    return give


def _expected(saved_model, images, signature):
    probabilities = saved_model.signatures[signature](images=images)["probabilities"].numpy()[0]
    return int(probabilities.argmax()), probabilities.max()


def test_answers_with_the_whole_ensemble_when_time_allows(ask, picture, saved_model, images):
    code, printed, complained = ask("--budget_ms=60000", picture)
    assert (code, complained) == (0, [])
    best, probability = _expected(saved_model, images[:1], "ensemble_4")
    assert len(printed) == 1
    assert re.fullmatch(
        rf"{re.escape(str(picture))}: class {best} \({probability:.3f}\), ensemble of 4, "
        r"\d+\.\d\d ms of 60000 ms",
        printed[0],
    )


def test_the_manifest_names_the_class(ask, picture, manifest_path, saved_model, images):
    arguments = ("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    best, probability = _expected(saved_model, images[:1], "ensemble_4")
    code, printed, complained = ask(*arguments)
    assert (code, complained) == (0, [])
    assert f"{CLASSES[best]} ({probability:.3f}), ensemble of 4, " in printed[0]


def test_a_late_answer_is_reported_not_cut_off(ask, picture, estimates):
    estimates({1: 1e-6, 2: 1e-6, 4: 1e-6})
    code, printed, _ = ask("--budget_ms=0.001", picture)
    assert code == 0
    assert printed[0].endswith(" ms of 0.001 ms, late")


def test_every_picture_gets_its_line(ask, picture, tmp_path):
    other = tmp_path / "other.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(other)
    code, printed, _ = ask("--budget_ms=60000", picture, other)
    assert code == 0
    assert [line.split(":")[0] for line in printed] == [str(picture), str(other)]


def test_several_budgets_are_answered_in_turn(ask, picture, estimates):
    # Far apart, so that the answers' own times do not change the choices.
    estimates({1: 1.0, 2: 2e4, 4: 1e9})
    code, printed, _ = ask("--budget_ms=1000,5e6,1e11", picture)
    assert code == 0
    sizes = [re.search(r"ensemble of (\d)", line)[1] for line in printed]
    assert sizes == ["1", "2", "4"]


def test_latencies_are_those_that_budgets_are_held_against(ask, picture, estimates):
    estimates({1: 1.5, 2: 2.5, 4: 4.5})
    code, printed, _ = ask("--latencies", picture)
    assert code == 0
    assert json.loads(printed[0]) == {"1": 1.5, "2": 2.5, "4": 4.5}


def test_latencies_are_measured(ask, picture):
    code, printed, _ = ask("--latencies", picture)
    assert code == 0
    latencies = json.loads(printed[0])
    assert list(latencies) == ["1", "2", "4"]
    assert 0 < latencies["1"] <= latencies["2"] <= latencies["4"] < 10_000


def test_latencies_and_a_budget_exclude_each_other(ask, picture):
    _check_refused(ask("--latencies", "--budget_ms=5", picture), "got both")


def test_resize_fits_a_photo(ask, tmp_path):
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), (10, 200, 30)).save(photo)
    code, _, complained = ask("--budget_ms=60000", photo)
    assert code == 1
    assert len(complained) == 1
    assert "--resize" in complained[0]
    code, printed, complained = ask("--budget_ms=60000", "--resize", photo)
    assert (code, len(printed), complained) == (0, 1, [])


def test_a_manifest_with_pixels_says_how_a_photo_is_read(
    ask, tmp_path, manifest_path, manifest_content, saved_model
):
    pixels = Pixels(8, 8, 1, central_crop=0.5)
    manifest_path.write_text(json.dumps({**manifest_content, "pixels": pixels.to_json()}))
    shades = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(shades).save(tmp_path / "photo.png", exif=exif)
    expected = pixels.image(Image.fromarray(np.rot90(shades, -1)))
    best, probability = _expected(saved_model, expected[None], "ensemble_4")
    arguments = ("--budget_ms=60000", f"--manifest={manifest_path}", tmp_path / "photo.png")
    code, printed, complained = ask(*arguments)
    assert (code, complained) == (0, [])
    assert f"{CLASSES[best]} ({probability:.3f}), ensemble of 4, " in printed[0]


def test_the_answers_to_sound_pictures_come_in_spite_of_bad_ones(ask, picture, tmp_path):
    arguments = ("--budget_ms=60000", tmp_path / "absent.png", picture, tmp_path, picture)
    code, printed, complained = ask(*arguments)
    assert code == 1
    assert [line.split(":")[0] for line in printed] == [str(picture)] * 2
    assert len(complained) == 1
    assert f"'{tmp_path / 'absent.png'}' cannot be read: " in complained[0]
    assert f"'{tmp_path}' cannot be read: " in complained[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"resize": "nearest"}, "must follow the rules"), ({"size": [32, 32]}, "shape (32, 32, 1)")],
)
def test_pixels_that_are_not_the_models_are_refused(
    ask, picture, manifest_path, manifest_content, change, reason
):
    pixels = {**Pixels(8, 8, 1).to_json(), **change}
    manifest_path.write_text(json.dumps({**manifest_content, "pixels": pixels}))
    _check_refused(ask("--budget_ms=5", f"--manifest={manifest_path}", picture), reason)


@pytest.mark.parametrize("budget_ms", ["0", "-5", "nan", "inf", "soon"])
def test_a_budget_must_be_a_positive_number(ask, picture, budget_ms):
    _check_refused(ask(f"--budget_ms={budget_ms}", picture), "budget_ms")


def test_a_budget_that_nothing_fits_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=0.000001", picture), "smallest ensemble (size 1")


def test_no_budget_is_refused(ask, picture):
    _check_refused(ask(picture), "--budget_ms")


def test_no_model_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", picture, model=""), "--model")


def test_no_pictures_are_refused(ask):
    _check_refused(ask("--budget_ms=5"), "at least one picture")


def test_a_missing_picture_is_refused(ask, tmp_path):
    _check_refused(ask("--budget_ms=5", tmp_path / "absent.png"), "absent.png")


def test_text_is_refused(ask, manifest_path):
    _check_refused(ask("--budget_ms=5", manifest_path), "cannot be read: a picture must be in")


def test_a_server_that_is_down_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", picture, target="127.0.0.1:1"), "127.0.0.1:1")


def test_an_unknown_model_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", picture, model="unknown"), "NOT_FOUND")


def test_a_missing_certificate_is_refused(ask, picture, tmp_path):
    answer = ask("--budget_ms=5", f"--tls_ca={tmp_path / 'absent.pem'}", picture)
    _check_refused(answer, "--tls_ca must be a readable file")


@pytest.mark.parametrize("text", ["word", "Key=word", "=word"])
def test_metadata_must_be_pairs(ask, picture, text):
    _check_refused(ask("--budget_ms=5", f"--metadata={text}", picture), "must be key=value")


def test_metadata_goes_with_every_call(ask, picture, monkeypatch):
    sent = []
    genuine = MetadataSource.pairs
    monkeypatch.setattr(
        MetadataSource, "pairs", lambda source: sent.append(genuine(source)) or sent[-1]
    )
    code, _, _ = ask("--budget_ms=60000", "--metadata=authorization=Bearer a=b", picture)
    assert code == 0
    assert set(sent) == {(("authorization", "Bearer a=b"),)}


def test_something_else_as_manifest_is_refused(ask, picture):
    _check_refused(ask("--budget_ms=5", f"--manifest={picture}", picture), "must be JSON")


def test_another_models_manifest_is_refused(ask, picture, manifest_path):
    text = manifest_path.read_text().replace("8, 8, 1", "32, 32, 3")
    manifest_path.write_text(text)
    answer = ask("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    _check_refused(answer, "manifest must be that of the model served")


def test_class_names_of_another_number_are_refused(ask, picture, manifest_path):
    manifest_path.write_text(manifest_path.read_text().replace('"zero", ', ""))
    answer = ask("--budget_ms=60000", f"--manifest={manifest_path}", picture)
    _check_refused(answer, "10 classes, got 9 names")


def _check_refused(answer, reason):
    code, printed, complained = answer
    assert code != 0
    assert printed == []
    assert len(complained) == 1
    assert complained[0].startswith("hne-predict: ")
    assert reason in complained[0]
