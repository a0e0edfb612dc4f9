import dataclasses
import json
import shutil

import pytest

from hne_tf.data import fingerprint
from hne_tf.data.fingerprint import DataRecord
from hne_tf.errors import InputError

RECORD = DataRecord("f00d", ("ant", "bee"), {"train": 8, "validation": 2, "test": 4})


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / "data" / split / name / f"{i}.png").write_bytes(b"x" * i)
    return tmp_path / "data"


def test_a_folder_is_known_by_its_pictures_not_by_its_place(folder, tmp_path):
    before = fingerprint.of_folder(folder)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint.of_folder(moved) == before
    # What is no picture does not count.
    (moved / "train/ant/notes.txt").touch()
    (moved / "train/ant/.0.png").touch()
    assert fingerprint.of_folder(moved) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda train: (train / "ant/9.png").touch(),
        lambda train: (train / "ant/1.png").unlink(),
        lambda train: (train / "ant/1.png").write_bytes(b"longer"),
        lambda train: (train / "ant/1.png").rename(train / "ant/8.png"),
        lambda train: (train / "ant/1.png").rename(train / "bee/8.png"),
        lambda train: (train / "ant").rename(train / "asp"),
        lambda train: (train / "ant/9.png").symlink_to("nowhere"),
    ],
    ids=["added", "removed", "other size", "renamed", "other class", "class renamed", "dangling"],
)
def test_other_pictures_are_other_data(folder, change):
    before = fingerprint.of_folder(folder)
    change(folder / "train")
    assert fingerprint.of_folder(folder) != before


def test_a_record_comes_back_from_json():
    text = json.dumps(dataclasses.asdict(RECORD))
    assert DataRecord.from_json(json.loads(text), "data.json") == RECORD


@pytest.mark.parametrize("fields", [None, [], {}, {"fingerprint": "", "class_names": 3}])
def test_a_damaged_record_is_one_line(fields):
    with pytest.raises(InputError, match=r"data\.json must describe the data of a run"):
        DataRecord.from_json(fields, "data.json")


def test_differences_are_told_in_numbers_or_in_words():
    assert RECORD.difference(RECORD) is None
    more = dataclasses.replace(RECORD, fingerprint="beef", examples={**RECORD.examples, "train": 9})
    assert RECORD.difference(more) == "train: 8 there, 9 here"
    renamed = dataclasses.replace(RECORD, fingerprint="beef")
    assert RECORD.difference(renamed) == "the same numbers of pictures, of other names or sizes"


def test_classes_must_be_the_same_in_the_same_order():
    RECORD.check_classes(RECORD)
    for names in (("bee", "ant"), ("ant",), ("ant", "wasp")):
        with pytest.raises(
            InputError, match=f"2 classes of the run, 'ant', 'bee', got {len(names)}"
        ):
            RECORD.check_classes(dataclasses.replace(RECORD, class_names=names))


def test_a_data_set_knows_what_a_run_has_to_remember(load, jpeg_folder):
    record = load(name="image_folder", data_dir=str(jpeg_folder), image_size=8).record
    assert record.class_names == ("ant", "bee")
    assert sum(record.examples[split] for split in ("train", "validation")) == 20
    assert record.examples["test"] == 6
    assert record.fingerprint == fingerprint.of_folder(jpeg_folder)
    assert load().record.fingerprint == "digits"
