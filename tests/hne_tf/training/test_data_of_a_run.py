"""A run remembers its data: their classes and their pictures."""

import json
import shutil

import pytest
from PIL import Image

from hne_tf.errors import InputError
from hne_tf.training import config as configs
from hne_tf.training import trained
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "insects"
    for split, count in (("train", 12), ("test", 4)):
        for red, name in ((250, "ant"), (5, "bee")):
            for i in range(count):
                picture(folder / split / name / f"{i:02}.png", (red, 9 * i, 0))
    return folder


def settings(tiny_config, folder):
    return tiny_config(
        data__name="image_folder",
        data__data_dir=str(folder),
        data__image_size=8,
        data__train_examples=0,
        training__epochs=1.0,
        training__batch_size=8,
    )


@pytest.fixture(scope="module")
def finished(tiny_config, pictures, tmp_path_factory):
    """A finished run on `pictures` that tests copy."""
    workdir = Workdir(tmp_path_factory.mktemp("runs") / "run")
    train(settings(tiny_config, pictures), workdir, report=lambda line: None)
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    return Workdir(shutil.copytree(finished.path, tmp_path / "run"))


@pytest.fixture
def copied(pictures, tmp_path):
    """The pictures in another place, which a test may change."""
    return shutil.copytree(pictures, tmp_path / "moved")


def test_a_run_writes_what_it_was_trained_on(run, pictures):
    record = run.read_data()
    assert record.class_names == ("ant", "bee")
    assert record.examples["train"] + record.examples["validation"] == 24
    assert record.examples["test"] == 8


def test_pictures_may_move(tiny_config, run, copied):
    reports = []
    train(settings(tiny_config, copied), run, report=reports.append)
    assert any(line.startswith("resumed at step") for line in reports)
    reports.clear()
    trained.restore(run, str(copied), reports.append)
    assert not any("data have changed" in line for line in reports)


def test_a_run_does_not_go_on_with_other_pictures(tiny_config, run, copied):
    picture(copied / "train/ant/99.png", (1, 2, 3))
    before = run.data_path.read_text()
    with pytest.raises(InputError, match=r"made with other data .* --restart") as error:
        train(settings(tiny_config, copied), run, report=lambda line: None)
    assert "there" in str(error.value)
    assert run.data_path.read_text() == before


def test_a_run_does_not_go_on_with_other_classes(tiny_config, run, copied):
    for split in ("train", "test"):
        (copied / split / "ant").rename(copied / split / "wasp")
    with pytest.raises(
        InputError, match="2 classes of the run, 'ant', 'bee', got 2, 'bee', 'wasp'"
    ):
        train(settings(tiny_config, copied), run, report=lambda line: None)


def test_other_class_names_are_not_evaluated(run, copied):
    for split in ("train", "test"):
        (copied / split / "ant").rename(copied / split / "wasp")
    with pytest.raises(
        InputError, match="2 classes of the run, 'ant', 'bee', got 2, 'bee', 'wasp'"
    ):
        trained.restore(run, str(copied), lambda line: None)


def test_an_evaluation_tells_that_pictures_have_changed(run, copied):
    reports = []
    picture(copied / "test/ant/99.png", (1, 2, 3))
    trained.restore(run, str(copied), reports.append)
    assert "note: the data have changed since the run: test: 8 there, 9 here" in reports


def test_a_run_older_than_the_record_goes_on_and_gets_one(tiny_config, run, pictures):
    run.data_path.unlink()
    assert run.read_data() is None
    trained.restore(run, str(pictures), lambda line: None)
    train(settings(tiny_config, pictures), run, report=lambda line: None)
    assert run.read_data().class_names == ("ant", "bee")


def test_a_damaged_record_is_one_line(run):
    run.data_path.write_text("{")
    with pytest.raises(InputError, match=r"data\.json must be readable JSON"):
        run.read_data()
    run.data_path.write_text(json.dumps({"fingerprint": "x"}))
    with pytest.raises(InputError, match=r"data\.json must describe the data"):
        run.read_data()


def test_the_digest_tells_folders_of_pictures_apart_and_not_places(
    tiny_config, run, pictures, copied
):
    one = configs.digest(settings(tiny_config, pictures))
    assert configs.digest(settings(tiny_config, copied)) == one
    assert run.digest() == one
    picture(copied / "train/ant/99.png", (1, 2, 3))
    assert configs.digest(settings(tiny_config, copied)) != one
    # The run is known by what it was trained on, also when that is gone.
    fields = json.loads(run.config_path.read_text())
    fields["data"]["data_dir"] = "/nowhere"
    run.config_path.write_text(json.dumps(fields))
    assert run.digest() == one


def test_a_model_is_matched_to_the_run_that_it_comes_from(run, pictures):
    record = trained.restore(run, str(pictures), lambda line: None).record
    assert record["config_digest"] == run.digest()
