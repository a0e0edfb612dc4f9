"""Sets of TFDS that the project knows nothing of, made up and prepared on the disk."""

import os
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds

from hne_tf import data
from hne_tf.errors import InputError

CLASSES = ["ant", "bee"]


def features_of(shape):
    image = tfds.features.Image(shape=shape, encoding_format="png")
    return {"image": image, "label": tfds.features.ClassLabel(names=CLASSES)}


def builder_of(splits, features):
    """A class of sets with so many examples in each split."""
    # Unregistered: other tests are not to find it.
    with tfds.core.registered.skip_registration():

        class Made(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("0.0.1")
            name = "made"

            def _info(self):
                dictionary = tfds.features.FeaturesDict(features)
                return tfds.core.DatasetInfo(builder=self, features=dictionary)

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(name, n) for name, n in splits.items()}

            def _generate_examples(self, split, count):
                shape = [side or 5 for side in features["image"].shape]
                for index in range(count):
                    value = sorted(splits).index(split) * 80 + index
                    image = np.full(shape, value, np.uint8)
                    yield index, {"image": image, "label": index % 2}

    return Made


@pytest.fixture
def made(monkeypatch, tmp_path, load):
    """Loads a set with so many examples in each split."""

    def loaded(splits, features=None, **settings):
        made = builder_of(splits, features or features_of((4, 4, 1)))
        monkeypatch.setattr(tfds, "builder", lambda name, data_dir: made(data_dir=data_dir))
        settings = {"name": "tfds:made", "data_dir": str(tmp_path), "download": True, **settings}
        return load(**settings)

    return loaded


def values(dataset, split):
    """The value that all pixels of each example have, and the labels."""
    ((images, labels),) = dataset.evaluation_batches(split, 100).as_numpy_iterator()
    assert np.ptp(images, axis=(1, 2, 3)).max() == 0
    return images[:, 0, 0, 0], labels


def test_images_of_one_size_are_kept_in_memory_and_normalised_by_their_statistics(made):
    dataset = made({"train": 30, "test": 6})
    assert dataset.spec.shape == (4, 4, 1)
    assert dataset.spec.class_names == ("ant", "bee")
    found = {split: values(dataset, split) for split in data.SPLITS}
    assert [len(found[split][0]) for split in data.SPLITS] == [27, 3, 6]
    held_out = np.concatenate([found["train"][0], found["validation"][0]])
    # Splits are told apart by what is added: test comes first.
    np.testing.assert_array_equal(np.sort(held_out), 80 + np.arange(30))
    np.testing.assert_array_equal(np.sort(found["test"][0]), np.arange(6))
    for pixels, labels in found.values():
        np.testing.assert_array_equal(labels, pixels % 2)
    np.testing.assert_allclose(dataset.spec.mean, found["train"][0].mean(), rtol=1e-5)
    np.testing.assert_allclose(dataset.spec.std, found["train"][0].std(), rtol=1e-5)


def test_pictures_of_any_size_are_read_by_index_and_a_validation_split_is_taken(made):
    dataset = made(
        {"train": 9, "validation": 3, "test": 4}, features_of((None, None, 3)), image_size=6
    )
    assert dataset.spec.shape == (6, 6, 3)
    assert [dataset.examples(split) for split in data.SPLITS] == [9, 3, 4]
    for number, split in enumerate(("test", "train", "validation")):
        pixels, labels = values(dataset, split)
        first = 80 * number
        np.testing.assert_array_equal(np.sort(pixels), first + np.arange(len(pixels)))
        np.testing.assert_array_equal(labels, pixels % 2)


def test_a_set_without_test_is_tested_on_validation(made):
    dataset = made({"train": 20, "validation": 4})
    assert [dataset.examples(split) for split in data.SPLITS] == [18, 2, 4]


@pytest.mark.parametrize(
    ("splits", "features", "message"),
    [
        ({"train": 4}, None, "splits train and test or validation, made has train"),
        (
            {"train": 4, "test": 4},
            {"image": tfds.features.Image(shape=(4, 4, 1))},
            "features image and label of classes, made has image",
        ),
        (
            {"train": 4, "test": 4},
            {
                **features_of(None),
                "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16),
            },
            "images must be of uint8, those of made are ",
        ),
    ],
)
def test_other_sets_are_refused(made, splits, features, message):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        made(splits, features)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:", "data.name must name a set of TFDS, tfds:food101, got 'tfds:'"),
        ("tfds", "data.name must name a set of TFDS, tfds:food101, got 'tfds'"),
        ("tfds:no_such_set", "TFDS must have the set 'no_such_set': "),
        ("tfds:no such set", "TFDS must have the set 'no such set': "),
    ],
)
def test_names_that_are_none_are_refused(load, tmp_path, name, message):
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        load(name=name, data_dir=str(tmp_path))
    assert "\n" not in str(refused.value)


@pytest.mark.skipif("HNE_TFDS_DIR" not in os.environ, reason="HNE_TFDS_DIR holds no CIFAR-10")
def test_cifar10_by_its_name_in_tfds_has_the_same_test_images(load):
    place = os.environ["HNE_TFDS_DIR"]
    one, other = (
        next(load(name=name, data_dir=place).evaluation_batches("test", 100).as_numpy_iterator())
        for name in ("cifar10", "tfds:cifar10")
    )
    for expected, got in zip(one, other, strict=True):
        np.testing.assert_array_equal(got, expected)
