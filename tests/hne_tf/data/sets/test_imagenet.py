import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import imagenet_large, imagenet_small
from hne_tf import data
from hne_tf.errors import InputError
from hne_tf.training import build
from hne_tf.training.config import default


def load(**settings):
    config = default().data
    config.update(name="imagenet2012", image_size=16, **settings)
    return data.load(config)


@pytest.fixture
def mocked():
    """TFDS's own stand-in for ImageNet: every split has twelve random pictures."""
    with tfds.testing.mock_data(num_examples=12):
        # Downloading is mocked, too.
        yield {"download": True, "random_resized_crop": 0.5, "central_crop": 0.875, "flip": True}


def test_mocked_imagenet(mocked):
    dataset = load(**mocked)
    assert [dataset.examples(split) for split in data.SPLITS] == [12, 12, 12]
    assert dataset.spec.shape == (16, 16, 3)
    assert len(dataset.spec.class_names) == 1000
    assert dataset.spec.class_names[0] == "n01440764"
    assert load(**mocked, train_examples=5).examples("train") == 5
    ((images, labels),) = dataset.evaluation_batches("test", 12).as_numpy_iterator()
    assert len({image.tobytes() for image in images}) == 12
    settings = {"batch_size": 12, "seed": 1}
    whole = dataset.train_batches(start_step=0, total_steps=3, **settings).as_numpy_iterator()
    first, _, third = whole
    assert sorted(first[1]) == sorted(labels)
    ((images, labels),) = dataset.train_batches(
        start_step=2, total_steps=3, **settings
    ).as_numpy_iterator()
    np.testing.assert_array_equal(images, third[0])
    np.testing.assert_array_equal(labels, third[1])


@pytest.mark.parametrize("module", [imagenet_small, imagenet_large])
def test_configs(module, mocked):
    config = module.get_config()
    config.data.download = True
    dataset = data.load(config.data)
    ((images, _),) = dataset.train_batches(
        batch_size=2, start_step=0, total_steps=1, seed=config.seed
    ).as_numpy_iterator()
    assert images.shape == (2, 224, 224, 3)
    assert build.tree(config).leaves == 8
    assert build.architecture(config).blocks == 4
    name = module.__name__.rpartition(".")[2]
    assert f"--config=configs/{name}.py --workdir=runs/{name}" in module.__doc__


def test_more_examples_than_there_are(mocked):
    with pytest.raises(InputError, match=r"between 0 \(all\) and 12, got 13"):
        load(**mocked, train_examples=13)


# Unregistered: it is not to be found as ImageNet by other tests.
with tfds.core.registered.skip_registration():

    class Tiny(tfds.core.GeneratorBasedBuilder):
        """ImageNet's features and splits, of a few pictures."""

        # Not one of ImageNet's own, of which TFDS would look up facts on the network.
        VERSION = tfds.core.Version("0.0.1")
        name = "imagenet2012"

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(names=["ant", "bee"]),
                "file_name": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(9), "validation": self._generate_examples(4)}

        def _generate_examples(self, count):
            for i in range(count):
                image = np.full((20, 30, 3), 20 * i, np.uint8)
                yield i, {"image": image, "label": i % 2, "file_name": f"{i}.JPEG"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the tiny set is prepared and found as ImageNet."""
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Tiny(data_dir=data_dir))
    monkeypatch.setattr("hne_tf.data.sets.tfds_sets.IMAGENET_VALIDATION_EXAMPLES", 3)
    return str(tmp_path)


def test_records_are_read_by_index(place):
    load(data_dir=place, download=True)
    dataset = load(data_dir=place)
    assert [dataset.examples(split) for split in data.SPLITS] == [6, 3, 4]
    assert dataset.spec.class_names == ("ant", "bee")
    pixels = {}
    for split in data.SPLITS:
        ((images, labels),) = dataset.evaluation_batches(split, 10).as_numpy_iterator()
        pixels[split] = np.round(images.mean((1, 2, 3)) / 20).astype(int)
        np.testing.assert_array_equal(labels, pixels[split] % 2)
    # Validation is a part of train, test is the public validation split.
    assert sorted([*pixels["train"], *pixels["validation"]]) == list(range(9))
    assert sorted(pixels["test"]) == list(range(4))


def test_another_format_is_refused(place):
    Tiny(data_dir=place).download_and_prepare(file_format="tfrecord")
    with pytest.raises(InputError) as error:
        load(data_dir=place)
    message = str(error.value)
    assert "\n" not in message
    assert "must be in the format array_record" in message
    assert f"got tfrecord in {place}" in message


def test_missing_imagenet_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"imagenet2012 must be prepared .* found none"):
        load(data_dir=str(tmp_path))
    # Its archives cannot be downloaded but by hand: TFDS says where they go.
    with pytest.raises(InputError, match=r"ILSVRC2012_img_train\.tar") as error:
        load(data_dir=str(tmp_path), download=True)
    assert "\n" not in str(error.value)
