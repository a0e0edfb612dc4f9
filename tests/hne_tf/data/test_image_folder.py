import numpy as np
import pytest
from PIL import Image

from hne_tf import data
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


def test_image_folder_holds_out_every_tenth_file_of_a_class(load, folder):
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    assert dataset.spec.class_names == ("ant", "bee")
    assert dataset.spec.shape == (4, 4, 3)
    assert [dataset.examples(split) for split in data.SPLITS] == [20, 4, 4]
    images, labels = next(dataset.evaluation_batches("validation", 9).as_numpy_iterator())
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    colours = [(200, 1, 0), (200, 11, 0), (40, 1, 0), (40, 11, 0)]
    np.testing.assert_array_equal(images, np.tile(np.reshape(colours, (4, 1, 1, 3)), (4, 4, 1)))


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
    assert np.bincount(labels).tolist() == [20, 20]
    for expected, got in zip(whole[3:], batches_of(dataset, 3, 5, batch_size=8), strict=True):
        np.testing.assert_array_equal(got[0], expected[0])


def test_image_folder_reads_formats_and_modes_and_skips_other_files(load, folder):
    classes = folder / "test" / "ant"
    write_image(classes / "02.JPEG", (10, 20, 30), quality=95)
    write_image(classes / "03.jpg", 99, mode="L", quality=95)
    write_image(classes / "04.png", (10, 20, 30, 255), mode="RGBA")
    write_image(
        classes / "05.gif", 0, mode="P", save_all=True, append_images=[Image.new("P", (6, 4))]
    )
    (classes / "notes.txt").write_text("not an image")
    (folder / "test" / ".cache").mkdir()
    dataset = load(name="image_folder", data_dir=str(folder), image_size=4)
    images, labels = next(dataset.evaluation_batches("test", 20).as_numpy_iterator())
    assert labels.tolist() == [0] * 6 + [1] * 2
    expected = [(10, 20, 30), (99, 99, 99), (10, 20, 30), (0, 0, 0)]
    np.testing.assert_allclose(images[2:6, 0, 0], expected, atol=2)


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
    assert f"{folder / 'test'}/<class>/" in message()
    (folder / "train" / "void").mkdir()
    assert "got no image in void" in message()
    (folder / "train").rename(folder / "old")
    (folder / "train").mkdir()
    assert "got no image in any class" in message()


def test_one_image_per_class_leaves_no_validation(load, tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "ant" / "0.png", (1, 2, 3))
    with pytest.raises(InputError, match="at least two training images"):
        load(name="image_folder", data_dir=str(tmp_path), image_size=4)
