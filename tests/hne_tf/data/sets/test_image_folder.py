import os

import numpy as np
import pytest
from PIL import Image

from hne_tf import data
from hne_tf.data import subsets
from hne_tf.errors import InputError


def write_image(path, colour, size=(6, 4), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes of a dozen training images and two test images each."""
    for split, count in (("train", 12), ("test", 2)):
        for red, name in ((200, "ant"), (40, "bee")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i:02}.png", (red, i, 0))
    return tmp_path


def numbers_of(dataset, split):
    """Class and number of each picture of `folder` in a split."""
    return {
        (int(label), int(image[0, 0, 1]))
        for images, labels in dataset.evaluation_batches(split, 9).as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    }


def test_pictures_need_a_size_in_common(load, folder):
    with pytest.raises(InputError, match=r"image_size of image_folder must be at least 1, got 0"):
        load(name="image_folder", data_dir=str(folder))


def test_image_folder_holds_out_some_files_of_each_class(load, folder):
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    assert dataset.spec.class_names == ("ant", "bee")
    assert dataset.spec.shape == (4, 4, 3)
    assert [dataset.examples(split) for split in data.SPLITS] == [22, 2, 4]
    held_out, trained = numbers_of(dataset, "validation"), numbers_of(dataset, "train")
    assert {label for label, _ in held_out} == {0, 1}
    assert not held_out & trained
    assert held_out | trained == {(label, i) for label in (0, 1) for i in range(12)}


def test_what_is_held_out_stays_so_when_pictures_are_added(load, folder):
    settings = {"name": "image_folder", "data_dir": str(folder), "image_size": 4}

    def add(numbers):
        for red, name in ((200, "ant"), (40, "bee")):
            for i in numbers:
                write_image(folder / "train" / name / f"{i:02}.png", (red, i, 0))

    add(range(12, 25))
    before = numbers_of(load(**settings), "validation")
    add(range(25, 60))
    dataset = load(**settings)
    after = numbers_of(dataset, "validation")
    assert {(label, number) for label, number in after if number < 25} == before
    assert len(after) > len(before)
    assert not after & numbers_of(dataset, "train")


def test_about_a_tenth_of_a_large_class_is_held_out():
    labels = np.repeat([0, 1, 2, 3], [4000, 2000, 2, 1])
    draws = np.random.default_rng(0).random(len(labels))
    marked = subsets.a_tenth(labels, draws)
    counts = np.bincount(labels[marked], minlength=4)
    assert 300 < counts[0] < 500
    assert 140 < counts[1] < 260
    # One of two, and the only one is for training.
    assert counts[2:].tolist() == [1, 0]
    # A picture's own draw decides, whatever others there are.
    part = np.arange(0, 6000, 3)
    np.testing.assert_array_equal(subsets.a_tenth(labels[part], draws[part]), marked[part])


def test_image_folder_takes_its_own_validation_and_a_subset(load, folder):
    for name in ("ant", "bee"):
        write_image(folder / "validation" / name / "0.png", (9, 9, 9))
    settings = {"name": "image_folder", "data_dir": str(folder), "image_size": 4}
    whole, part = load(**settings), load(**settings, train_examples=6)
    assert [whole.examples(split) for split in data.SPLITS] == [24, 2, 4]
    assert [part.examples(split) for split in data.SPLITS] == [6, 2, 4]


def test_image_folder_batches_hold_each_image_once_and_resume(load, batches_of, folder):
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4, pad_pixels=1, flip=True)
    whole = batches_of(dataset, 0, 5, batch_size=8)
    labels = np.concatenate([labels for _, labels in whole])
    assert labels.size == 40
    for expected, got in zip(whole[3:], batches_of(dataset, 3, 5, batch_size=8), strict=True):
        np.testing.assert_array_equal(got[0], expected[0])


# As people and their programs name pictures, by the format that is in them.
NAMES = {
    "JPEG": ["a.jpg", "b.Jpg", "c.JPEG", "d.jfif", "e.jpe", "f.x.jpeg", "g h.jpg", "é.jpg"],
    "PNG": ["i.png", "j.PNG", "photo.jpg.png"],
    "GIF": ["k.gif"],
    "BMP": ["l.bmp", "m.Dib"],
    "WEBP": ["n.webp"],
    "TIFF": ["o.tif", "p.TIFF"],
    "AVIF": ["q.avif"],
    "PPM": ["r.ppm", "s.pnm"],
    "JPEG2000": ["t.jp2"],
}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in NAMES.items() for n in names])
def test_pictures_of_any_common_name_and_format_are_read(load, folder, kind, name):
    path = folder / "test" / "ant" / "2" / name
    path.parent.mkdir()
    Image.new("RGB", (6, 4), (10, 200, 30)).save(path, kind)
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    images, labels = next(dataset.evaluation_batches("test", 20).as_numpy_iterator())
    assert labels.tolist() == [0] * 3 + [1] * 2
    np.testing.assert_allclose(images[2], np.full((4, 4, 3), (10, 200, 30)), atol=4)
    assert dataset.found == (
        "train: 22 pictures (ant 11, bee 11)",
        "validation: 2 pictures (ant 1, bee 1), a tenth of train",
        "test: 5 pictures (ant 3, bee 2)",
    )


@pytest.mark.parametrize("name", ["validation", "valid", "val", "Val", "VALIDATION"])
def test_names_of_the_validation_split(load, folder, name):
    for label in ("ant", "bee"):
        write_image(folder / name / label / "0.png", (9, 9, 9))
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    assert [dataset.examples(split) for split in data.SPLITS] == [24, 2, 4]
    assert dataset.found[1] == "validation: 2 pictures (ant 1, bee 1)"


def test_two_validation_splits_are_refused(load, folder):
    for name in ("val", "valid"):
        write_image(folder / name / "ant" / "0.png", (9, 9, 9))
    with pytest.raises(InputError, match=r"one folder, got '.*/val' and '.*/valid' for validation"):
        load(name="image_folder", data_dir=str(folder), image_size=4)


def test_what_is_hidden_is_no_picture(load, folder):
    """Such as macOS leaves on disks and in archives, with the suffixes of its pictures."""
    for name in ("._01.png", "._00.png", ".DS_Store", ".thumbnails/00.png", "__MACOSX/00.png"):
        for label in ("train/ant", "train/bee", "test/ant"):
            path = folder / label / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"Mac OS X")
    for name in ("train/.cache/0.png", "test/__MACOSX/ant/._0.png", "__MACOSX/train/._ant"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"Mac OS X")
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    assert dataset.spec.class_names == ("ant", "bee")
    images, labels = next(dataset.evaluation_batches("validation", 9).as_numpy_iterator())
    assert labels.tolist() == [0, 1]
    assert set(images[:, 0, 0, 1].tolist()) < set(range(12))
    (line,) = (line for line in dataset.found if line.startswith("ignored"))
    assert line == f"ignored: 18 hidden, such as {str(folder / '__MACOSX')!r}"


def test_what_is_ignored_is_told_with_the_reason(load, folder):
    for name in ("a.heic", "b.HEIC", "c.txt", "d", "e.jpg.part"):
        (folder / "test" / "ant" / name).touch()
    (folder / "test" / "0.png").touch()
    (folder / "dev").mkdir()
    (folder / "train" / "ant" / "more").symlink_to(folder / "train")
    found = load(name="image_folder", data_dir=str(folder), image_size=4).found
    ant = folder / "test" / "ant"
    assert found[3] == (
        f"ignored: 2 with suffix '.heic', such as {str(ant / 'a.heic')!r}; "
        f"1 beside the folders of the splits, such as {str(folder / 'dev')!r}; "
        f"1 links to folders, such as {str(folder / 'train/ant/more')!r}; "
        f"1 beside the folders of the classes, such as {str(folder / 'test/0.png')!r}; "
        f"1 with suffix '.txt', such as {str(ant / 'c.txt')!r}; "
        f"1 without suffix, such as {str(ant / 'd')!r}; "
        f"1 with suffix '.part', such as {str(ant / 'e.jpg.part')!r}"
    )
    for path in ant.glob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"got none in 'ant'; ignored: .*2 with suffix '\.heic'"):
        load(name="image_folder", data_dir=str(folder), image_size=4)


def test_training_tells_what_was_found(folder, tmp_path, run_binary):
    from hne_tf.bin import evaluate, train

    (folder / "test" / "ant" / "a.heic").touch()
    settings = {
        "data.name": "image_folder", "data.data_dir": folder, "data.image_size": 8,
        "data.pad_pixels": 0, "model.branching": "(1, 2)", "model.resnet.unit": "basic",
        "model.resnet.widths": "(4, 8)", "model.resnet.units": "(1, 1)",
        "model.resnet.strides": "(1, 2)",
        "model.resnet.stem_width": 4, "training.epochs": 2.0, "training.batch_size": 10,
        "optimizer.warmup_epochs": 0.5,
    }  # fmt: skip
    workdir = tmp_path.with_name("run")
    arguments = [f"--config.{field}={value}" for field, value in settings.items()]
    _, lines, errors = run_binary(
        train, "--config=configs/digits.py", f"--workdir={workdir}", *arguments
    )
    assert errors == []
    expected = ["train: 22 pictures (ant 11, bee 11)", "test: 4 pictures (ant 2, bee 2)"]
    assert set(expected) < set(lines)
    assert any(line.startswith("ignored: 1 with suffix '.heic', such as '") for line in lines)
    _, lines, _ = run_binary(evaluate, f"--workdir={workdir}")
    assert set(expected) < set(lines)


def test_many_classes_are_told_in_one_line(load, tmp_path):
    for split, count in (("train", 3), ("test", 1)):
        for label in range(21):
            for i in range(count + (label == 0)):
                path = tmp_path / split / f"{label:02}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
    found = load(name="image_folder", data_dir=str(tmp_path), image_size=4).found
    assert found[0] == "train: 40 pictures (1 to 3 in each of 21 classes)"


def test_a_class_may_be_a_link(load, folder):
    (folder / "train" / "bee").rename(folder / ".bees")
    (folder / "train" / "bee").symlink_to(folder / ".bees")
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    assert dataset.examples("train") == 22


@pytest.mark.parametrize("name", ["a\nb", "a\udcff", "a\u2028b", "\x1b[31m"])
def test_names_that_would_garble_a_table_are_refused(load, folder, name):
    (folder / "train" / "bee").rename(folder / "train" / name)
    with pytest.raises(InputError) as error:
        load(name="image_folder", data_dir=str(folder), image_size=4)
    assert str(error.value).startswith("the name of a class must be printable text, got '")
    assert repr(name)[1:-1] in str(error.value)


def test_images_are_resized_as_pillow_does(load, tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((40, 30))
    for split in ("train", "test"):
        for i in range(2):
            (tmp_path / split / "ant").mkdir(parents=True, exist_ok=True)
            smooth.save(tmp_path / split / "ant" / f"{i}.png")
    dataset = load(name="image_folder", data_dir=str(tmp_path), image_size=12)
    images, _ = next(dataset.evaluation_batches("test", 1).as_numpy_iterator())
    expected = np.asarray(smooth.resize((12, 12), Image.Resampling.BILINEAR), int)
    np.testing.assert_allclose(images[0], expected, atol=2)


def test_bad_layouts_of_an_image_folder(load, folder):
    def message():
        with pytest.raises(InputError) as error:
            load(name="image_folder", data_dir=str(folder), image_size=4)
        assert "\n" not in str(error.value)
        return str(error.value)

    (folder / "test" / "bee").rename(folder / "test" / "cow")
    assert "missing ['bee'], extra ['cow']" in message()
    (folder / "test" / "cow").rename(folder / "test" / "bee")
    (folder / "test").rename(folder / "elsewhere")
    assert f"needs pictures in '{folder / 'test'}/<class>'" in message()
    (folder / "train" / "void").mkdir()
    assert "got none in 'void'" in message()
    (folder / "train").rename(folder / "old")
    (folder / "train").mkdir()
    assert "got no class" in message()


@pytest.mark.parametrize("name", ["a file", "circle", "~nobody-of-this-name/x", "a\0b", "x" * 300])
def test_impossible_folders_are_one_line(load, tmp_path, name):
    (tmp_path / "a file").touch()
    (tmp_path / "circle").symlink_to("circle")
    place = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(InputError, match=r"data\.data_dir must be a (readable )?folder, got '"):
        load(name="image_folder", data_dir=place, image_size=4)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_one_line(load, folder):
    (folder / "test" / "ant").chmod(0)
    with pytest.raises(InputError, match=r"readable folder, got '.*test/ant': Permission denied"):
        load(name="image_folder", data_dir=str(folder), image_size=4)


def test_one_image_per_class_leaves_no_validation(load, tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "ant" / "0.png", (1, 2, 3))
    with pytest.raises(InputError, match="at least two training images"):
        load(name="image_folder", data_dir=str(tmp_path), image_size=4)
