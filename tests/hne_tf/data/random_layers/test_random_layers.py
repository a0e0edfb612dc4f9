"""Batches through Keras's layers, which are a function of seed and step."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data import load
from hne_tf.data.augmentation import Augmentation
from hne_tf.data.random_layers import RandomLayers, views
from hne_tf.data.random_layers.layers import BatchLayers
from hne_tf.errors import InputError
from hne_tf.training.config import default
from hne_tf.training.loop import train
from hne_tf.training.workdir import Workdir

KINDS = {
    "erasing": RandomLayers(random_erasing=0.5),
    "mixup": RandomLayers(mix="mixup"),
    "cutmix": RandomLayers(mix="cutmix"),
    "rand_augment": RandomLayers(rand_augment=0.5),
}


@pytest.fixture(scope="module")
def plain():
    section = default().data
    section.train_examples = 100
    return load(section)


def batches_of(data_set, batch_size):
    return data_set.train_batches(batch_size=batch_size, start_step=0, total_steps=1, seed=0)


def batches(data_set, start=0, stop=3, seed=5):
    found = data_set.train_batches(batch_size=8, start_step=start, total_steps=stop, seed=seed)
    return [(images.numpy(), labels.numpy()) for images, labels in found]


@pytest.mark.parametrize("kind", ["erasing", "mixup", "cutmix"])
def test_a_batch_is_a_function_of_seed_and_step(plain, kind):
    data_set = dataclasses.replace(plain, augmentation=Augmentation(layers=KINDS[kind]))
    whole, before = batches(data_set), batches(plain)
    # A run that goes on at step 2 makes its layers anew.
    again = dataclasses.replace(plain, augmentation=Augmentation(layers=KINDS[kind]))
    (resumed,) = batches(again, start=2)
    for part, other in zip(resumed, whole[2], strict=True):
        np.testing.assert_array_equal(part, other)
    for (images, _), (original, _) in zip(whole, before, strict=True):
        assert images.dtype == np.uint8
        assert images.shape == original.shape
        assert (images != original).any()
    # Another step has other random numbers, and so has another seed.
    changed = [images != original for (images, _), (original, _) in zip(whole, before, strict=True)]
    assert (changed[0] != changed[1]).any()
    assert (batches(data_set, stop=1, seed=6)[0][0] != whole[0][0]).any()


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_images(plain, kind):
    data_set = dataclasses.replace(plain, augmentation=Augmentation(layers=KINDS[kind]))
    ((_, rows),), ((_, labels),) = batches(data_set, stop=1), batches(plain, stop=1)
    assert rows.shape == (8, 10)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    assert (rows > 0).sum(axis=1).max() == 2
    assert (rows[np.arange(8), labels] > 0).all()


def test_rand_augment_is_a_function_of_the_seed(plain):
    coloured = tf.repeat(plain.splits["train"].images(tf.range(4)), 3, axis=-1)

    def changed(seed):
        layers = BatchLayers([KINDS["rand_augment"]], 10)
        images, _ = layers.apply(coloured, tf.zeros(4, tf.int32), tf.constant([1, seed], tf.int64))
        return images.numpy()

    np.testing.assert_array_equal(changed(2), changed(2))
    assert any((changed(2) != changed(seed)).any() for seed in (3, 4))


def test_soft_labels_train(tiny_config, tmp_path):
    config = tiny_config(data__mix="cutmix", training__epochs=1.0, model__branching=(1, 1, 1))
    config.data.random_erasing = 0.3
    assert train(config, Workdir(tmp_path / "run"), report=str) == 10


def test_rows_of_a_batch_belong_to_views_in_turn(plain):
    settings = (RandomLayers(), KINDS["cutmix"])
    data_set = dataclasses.replace(plain, augmentation=Augmentation(views=settings))
    ((images, rows),), ((original, labels),) = batches(data_set, stop=1), batches(plain, stop=1)
    np.testing.assert_array_equal(images[::2], original[::2])
    np.testing.assert_array_equal(rows[::2], np.eye(10)[labels[::2]])
    assert (rows[1::2].max(axis=1) < 1).any()
    # Images are mixed with those of their own view, and each view has its own random numbers.
    mixed = (rows[1::2] > 0) & (np.eye(10)[labels[1::2]] == 0)
    assert set(np.nonzero(mixed)[1]) <= set(labels[1::2])
    both = dataclasses.replace(plain, augmentation=Augmentation(views=(KINDS["erasing"],) * 2))
    erased = batches(both, stop=1)[0][0] != original
    assert (erased[::2] != erased[1::2]).any()


def test_leaves_train_on_views_of_their_own(tiny_config, tmp_path):
    config = tiny_config(training__epochs=1.0, model__branching=(1, 1, 2))
    config.data.views = ("", "mix=mixup, random_erasing=0.3")
    assert train(config, Workdir(tmp_path / "run"), report=str) == 10


def test_views_change_what_they_name():
    shared = RandomLayers(random_erasing=0.2)
    found = views(("", "mix=cutmix", "random_erasing=0.5, mix=mixup"), shared)
    assert found == (shared, RandomLayers(0.0, "cutmix", 0.2), RandomLayers(0.0, "mixup", 0.5))
    for text in ("flip=1", "mix", "random_erasing=much"):
        with pytest.raises(InputError, match=f"data.views must set .* got '{text}'"):
            views((text,), shared)


def test_a_batch_divides_into_views(plain):
    augmentation = Augmentation(views=(RandomLayers(),) * 3)
    data_set = dataclasses.replace(plain, augmentation=augmentation)
    for build in (data_set.fit_batches, lambda size: batches_of(data_set, size)):
        with pytest.raises(InputError, match=r"divide into the 3 data\.views, got 8"):
            build(8)


def test_several_machines_are_refused(plain):
    data_set = dataclasses.replace(plain, augmentation=Augmentation(layers=KINDS["mixup"]))
    with pytest.raises(InputError, match="on one machine, got 2 shards"):
        data_set.train_batches(batch_size=8, start_step=0, total_steps=1, seed=0, shard=(0, 2))


def test_grey_images_have_no_rand_augment():
    section = default().data
    section.rand_augment = 0.5
    with pytest.raises(InputError, match=r"data\.rand_augment is for coloured images"):
        load(section)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": "blend"}, "data.mix must be mixup, cutmix or empty, got 'blend'"),
        ({"rand_augment": 1.5}, "data.rand_augment must lie in [0, 1], got 1.5"),
        ({"random_erasing": -0.1}, "data.random_erasing must lie in [0, 1], got -0.1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError) as refused:
        RandomLayers(**settings)
    assert message in str(refused.value)
