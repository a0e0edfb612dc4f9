import numpy as np
import pytest

from hne_tf.bin import train
from hne_tf.errors import InputError
from hne_tf.training import config as configs


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        name: value
        for split, count in (("train", 40), ("test", 10))
        for name, value in (
            (f"{split}_images", random.integers(0, 256, (count, 4, 6, 3), np.uint8)),
            (f"{split}_labels", np.arange(count) % 4),
        )
    }


@pytest.fixture
def written(tmp_path):
    def write(arrays, name="data.npz"):
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return write


def test_images_and_labels_are_enough(load, written, arrays):
    data = load(name="npz", data_dir=written(arrays))
    # About a tenth of train, always the same.
    assert (data.examples("train"), data.examples("validation")) == (35, 5)
    assert data.spec.class_names == ("0", "1", "2", "3")
    assert data.spec.shape == (4, 6, 3)
    images, labels = next(iter(data.evaluation_batches("test", 10)))
    np.testing.assert_array_equal(images, arrays["test_images"])
    np.testing.assert_array_equal(labels, arrays["test_labels"])
    # Statistics are of what is trained on.
    images, labels = next(iter(data.evaluation_batches("train", 35)))
    np.testing.assert_allclose(data.spec.mean, images.numpy().mean((0, 1, 2)))
    held_out = next(iter(data.evaluation_batches("validation", 5)))[1]
    assert set(held_out.numpy()) == {0, 1, 2, 3}


def test_what_is_stated_is_taken(load, written, arrays):
    stated = {
        **arrays,
        "validation_images": arrays["test_images"][:5],
        "validation_labels": arrays["test_labels"][:5],
        "class_names": np.array(["ant", "bee", "cat", "dog", "eel"]),
        "mean": (1.0, 2.0, 3.0),
        "std": (4.0, 5.0, 6.0),
    }
    data = load(name="npz", data_dir=written(stated))
    assert (data.examples("train"), data.examples("validation")) == (40, 5)
    assert data.spec.class_names[-1] == "eel"
    assert (data.spec.mean, data.spec.std) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))


def test_any_set_is_written_and_read_again(load, run_binary, tmp_path):
    path = tmp_path / "digits.npz"
    config = tmp_path / "config.py"
    config.write_text("from hne_tf.training.config import default as get_config\n")
    code, lines, _ = run_binary(train, f"--config={config}", f"--write_data={path}")
    assert code == 0
    assert lines == [f"wrote {path}: images 1257 of train, 180 of validation, 360 of test"]
    ours, theirs = load(name="digits"), load(name="npz", data_dir=str(path))
    assert ours.spec == theirs.spec
    for split in ours.splits:
        for mine, read in zip(
            *(next(iter(each.evaluation_batches(split, 2000))) for each in (ours, theirs)),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, read)
    code, _, errors = run_binary(train, f"--config={config}", f"--write_data={path}")
    assert code == 1
    assert "must be a new .npz file" in errors[0]


def test_a_fingerprint_is_of_the_content(written, arrays):
    config = configs.default()
    digests = []
    for name, content in (
        ("a.npz", arrays),
        ("b.npz", arrays),
        ("c.npz", {**arrays, "train_labels": arrays["train_labels"][::-1]}),
    ):
        config.data.update(name="npz", data_dir=written(content, name))
        digests.append(configs.digest(config))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": None}, "got none of test_images"),
        ({"train_images": np.zeros((40, 4, 6, 3))}, "must be uint8 .*, got float64"),
        ({"train_images": np.zeros((0, 4, 6, 3), np.uint8)}, "must be uint8"),
        ({"test_images": np.zeros((10, 4, 4, 3), np.uint8)}, "of one size in all splits"),
        ({"test_labels": np.zeros(9, int)}, r"must be 10 integers from 0, got int64 of \[9\]"),
        ({"test_labels": np.zeros(10)}, "must be 10 integers from 0, got float64"),
        ({"train_labels": np.arange(40) - 1}, "must be 40 integers from 0"),
        ({"class_names": np.array(["a"])}, "below the 1 classes, got 3"),
        ({"validation_labels": np.zeros(3, int)}, "must hold both of validation_images"),
    ],
)
def test_other_arrays_are_refused(load, written, arrays, change, message):
    changed = {name: value for name, value in {**arrays, **change}.items() if value is not None}
    with pytest.raises(InputError, match=message):
        load(name="npz", data_dir=written(changed))


@pytest.mark.parametrize("content", [b"", b"no arrays", None])
def test_other_files_are_refused(load, tmp_path, content):
    path = tmp_path / "data.npz"
    if content is not None:
        path.write_bytes(content)
    for data_dir in (str(path), str(tmp_path), ""):
        with pytest.raises(InputError, match=r"data.data_dir of npz must be a \.npz file"):
            load(name="npz", data_dir=data_dir)


def test_a_damaged_file_is_refused(load, written, arrays):
    path = written(arrays)
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 100)
    with pytest.raises(InputError, match=r"must be a \.npz file"):
        load(name="npz", data_dir=path)
