import numpy as np
import pytest
import tensorflow as tf

from hne_tf import data
from hne_tf.bin import evaluate, train
from hne_tf.data.decoding import Crops
from hne_tf.data.encoded import EncodedSplit
from hne_tf.errors import InputError, raised_in_graph
from hne_tf.image_spec import ImageSpec
from hne_tf.training.config import default

AUGMENTED = {"flip": True, "color_jitter": 0.3, "random_resized_crop": 0.3, "central_crop": 0.875}


def load(folder, **settings):
    config = default().data
    config.update(name="image_folder", data_dir=str(folder), image_size=16, **settings)
    return data.load(config)


def batches_of(dataset, start_step=0, total_steps=6, **settings):
    batches = dataset.train_batches(
        batch_size=8, start_step=start_step, total_steps=total_steps, seed=5, **settings
    )
    return list(batches.as_numpy_iterator())


def assert_equal(got, expected):
    assert len(got) == len(expected) > 0
    for (images, labels), (expected_images, expected_labels) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_evaluation_equals_decoding_each_file(jpeg_folder):
    dataset = load(jpeg_folder, **AUGMENTED)
    crops = Crops(16, central_crop=0.875)
    ((images, labels),) = dataset.evaluation_batches("test", 10).as_numpy_iterator()
    files = [jpeg_folder / "test" / name / f"{i}.jpg" for name in ("ant", "bee") for i in range(3)]
    expected = [crops.evaluated(tf.io.read_file(str(file))) for file in files]
    np.testing.assert_array_equal(images, expected)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_training_resumes_exactly_with_all_augmentation(jpeg_folder):
    dataset = load(jpeg_folder, **AUGMENTED)
    whole = batches_of(dataset)
    assert_equal(batches_of(dataset, start_step=4), whole[4:])
    # Eighteen images in an epoch, all of them different each time.
    assert len({image.tobytes() for images, _ in whole for image in images}) == 48


@pytest.mark.parametrize("count", [2, 4])
def test_shards_are_the_parts_of_each_batch(jpeg_folder, count):
    dataset = load(jpeg_folder, **AUGMENTED)
    shards = [batches_of(dataset, 1, 3, shard=(index, count)) for index in range(count)]
    assert shards[0][0][0].shape == (8 // count, 16, 16, 3)
    joined = [
        tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
        for batches in zip(*shards, strict=True)
    ]
    assert_equal(joined, batches_of(dataset, 1, 3))


def test_a_shard_is_all_that_is_read():
    read = []

    def fetch(index):
        tf.numpy_function(read.append, [index], [])
        return tf.constant(b""), tf.constant(0), tf.constant("a")

    split = EncodedSplit(100, fetch, Crops(4), skip_corrupt=True)
    spec = ImageSpec((4, 4, 3), ("a",), (0.0,) * 3, (1.0,) * 3)
    dataset = data.DataSet("any", spec, dict.fromkeys(data.SPLITS, split))
    with pytest.raises(tf.errors.OpError, match="only corrupt ones"):
        list(
            dataset.train_batches(batch_size=20, start_step=0, total_steps=1, seed=0, shard=(1, 5))
        )
    assert len(read) == 4


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_bad_shards(jpeg_folder, shard):
    with pytest.raises(InputError, match="0 <= index < count, got"):
        batches_of(load(jpeg_folder), shard=shard)
    with pytest.raises(InputError, match="divide by the 3 shards, got 8"):
        batches_of(load(jpeg_folder), shard=(0, 3))


# Corrupt pictures.


@pytest.fixture
def corrupt_folder(jpeg_folder):
    """A folder in which one JPEG for training and one to test end early."""
    for name in ("train/ant/4.jpg", "test/bee/1.jpg"):
        path = jpeg_folder / name
        path.write_bytes(path.read_bytes()[:300])
    return jpeg_folder


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_corrupt_picture_is_named(corrupt_folder, name):
    dataset = load(corrupt_folder)
    with pytest.raises(tf.errors.OpError) as error:
        list(dataset.evaluation_batches(name, 4))
    broken = {"train": "ant/4.jpg", "test": "bee/1.jpg"}[name]
    message = str(raised_in_graph(error.value))
    assert message.startswith("pictures must be sound JPEG, PNG or GIF files, got")
    assert str(corrupt_folder / name / broken) in message
    assert "--config.data.skip_corrupt=True" in message


def test_skipped_pictures_leave_batches_whole_and_exact(corrupt_folder):
    dataset = load(corrupt_folder, skip_corrupt=True, **AUGMENTED)
    whole = batches_of(dataset)
    assert {images.shape for images, _ in whole} == {(8, 16, 16, 3)}
    # No image is what stands for a corrupt one before it is replaced.
    assert all(images.any((1, 2, 3)).all() for images, _ in whole)
    assert dataset.skipped == [str(corrupt_folder / "train/ant/4.jpg")]
    assert_equal(batches_of(load(corrupt_folder, skip_corrupt=True, **AUGMENTED), 3), whole[3:])


@pytest.mark.parametrize("batch_size", [1, 4, 10])
def test_evaluation_leaves_corrupt_pictures_out(corrupt_folder, batch_size):
    dataset = load(corrupt_folder, skip_corrupt=True)
    batches = list(dataset.evaluation_batches("test", batch_size).as_numpy_iterator())
    labels = np.concatenate([labels for _, labels in batches])
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert all(len(images) == len(labels) > 0 for images, labels in batches)
    assert dataset.examples("test") == 6
    assert dataset.skipped == [str(corrupt_folder / "test/bee/1.jpg")]


def test_rows_that_are_kept():
    split = EncodedSplit(9, None, Crops(4), skip_corrupt=True)
    names, sound = np.array([b"a", b"b", b"c", b"d"]), np.array([False, True, False, True])
    assert split.kept(names, sound, training=False).tolist() == [1, 3]
    assert split.kept(names, sound, training=True).tolist() == [1, 1, 3, 3]
    assert split.skipped == {"a", "c"}
    with pytest.raises(InputError, match=r"needs a sound picture, got only corrupt ones: \['a'"):
        split.kept(names, ~(sound | True), training=True)


def test_binaries_stop_in_one_line_and_skip_when_told(
    corrupt_folder, tmp_path, run_binary, assert_refused
):
    workdir = tmp_path / "run"
    arguments = ["--config=configs/digits.py", f"--workdir={workdir}"]
    settings = {
        "data.name": "image_folder", "data.data_dir": corrupt_folder, "data.image_size": 8,
        "data.pad_pixels": 0, "model.branching": "(1, 2)", "model.unit": "basic",
        "model.widths": "(4, 8)", "model.units": "(1, 1)", "model.strides": "(1, 2)",
        "model.stem_width": 4, "training.epochs": 2.0, "training.batch_size": 6,
        "training.steps_per_call": 3, "optimizer.warmup_epochs": 0.5,
    }  # fmt: skip
    arguments += [f"--config.{field}={value}" for field, value in settings.items()]
    assert_refused(train, arguments, "train/ant/4.jpg", "skip_corrupt=True")
    code, lines, _ = run_binary(train, *arguments, "--config.data.skip_corrupt=True")
    assert code == 0
    (line,) = (line for line in lines if "corrupt" in line)
    assert line.startswith("1 corrupt images were skipped, the first: ")
    assert "train/ant/4.jpg" in line
    code, lines, _ = run_binary(evaluate, f"--workdir={workdir}")
    assert code == 0
    assert any("5 examples (1 corrupt ones skipped)" in line for line in lines)
