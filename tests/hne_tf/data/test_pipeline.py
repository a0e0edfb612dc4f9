import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf import data
from hne_tf.data import pipeline
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec


def in_memory_set(examples):
    """A set of 1x1 images, each example's pixel its index and its label too."""
    indices = np.arange(examples)
    images = tf.constant(indices.reshape(-1, 1, 1, 1), tf.uint8)
    split = data.Split(tf.constant(indices, tf.int32), lambda i: tf.gather(images, i))
    return data.DataSet(
        name="numbered",
        spec=ImageSpec((1, 1, 1), tuple(map(str, indices)), (0.0,), (1.0,)),
        splits=dict.fromkeys(data.SPLITS, split),
    )


def labels_of(batches):
    return np.concatenate([labels for _, labels in batches])


@pytest.mark.parametrize(("examples", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2), (100, 9)])
def test_every_example_comes_once_per_epoch(batches_of, examples, batch_size):
    steps = -(-4 * examples // batch_size)
    labels = labels_of(batches_of(in_memory_set(examples), 0, steps, batch_size=batch_size))
    epochs = labels[: 4 * examples].reshape(4, examples)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(examples), (4, 1)))
    if examples > 3:
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_images_and_labels_stay_together(batches_of):
    for images, labels in batches_of(in_memory_set(10), 0, 5):
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)


def test_order_depends_on_the_seed_only(batches_of):
    dataset = in_memory_set(50)
    first, again, other = (labels_of(batches_of(dataset, 0, 3, seed=s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("start_step", [0, 1, 7, 11, 12])
def test_resumed_batches_equal_uninterrupted_ones(load, batches_of, start_step):
    dataset = load(pad_pixels=2, flip=True, train_examples=50)
    whole = batches_of(dataset, 0, 12)
    resumed = batches_of(dataset, start_step, 12)
    assert len(resumed) == 12 - start_step
    for expected, got in zip(whole[start_step:], resumed, strict=True):
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_array_equal(got[1], expected[1])


def test_order_late_in_a_long_run_is_still_a_permutation():
    steps = tf.range(2**40, 2**40 + 10, dtype=tf.int64)
    indices = [pipeline.shuffled_indices(step, 10, 100, seed=-5) for step in steps]
    first = (2**40 * 10) % 100
    whole = np.concatenate(indices)[: 100 - first]
    assert len(set(whole)) == len(whole)
    assert set(whole) <= set(range(100))


def test_no_augmentation_leaves_training_images_alone(load, batches_of):
    dataset = load()
    train = {
        (image.tobytes(), label)
        for images, labels in dataset.evaluation_batches("train", 500).as_numpy_iterator()
        for image, label in zip(images, labels, strict=True)
    }
    for images, labels in batches_of(dataset, 0, 4):
        assert {(i.tobytes(), k) for i, k in zip(images, labels, strict=True)} <= train


@pytest.mark.parametrize("split", data.SPLITS)
def test_evaluation_covers_a_split_in_order_without_augmentation(load, split):
    plain, augmented = load(), load(pad_pixels=2, flip=True)
    batches = list(augmented.evaluation_batches(split, 100).as_numpy_iterator())
    sizes = [len(labels) for _, labels in batches]
    assert sum(sizes) == augmented.examples(split)
    assert set(sizes[:-1]) <= {100}
    (images, labels), *rest = plain.evaluation_batches(split, 2000).as_numpy_iterator()
    assert not rest
    np.testing.assert_array_equal(np.concatenate([i for i, _ in batches]), images)
    np.testing.assert_array_equal(np.concatenate([k for _, k in batches]), labels)


def test_bad_arguments_of_batches(batches_of):
    dataset = in_memory_set(4)
    for ask in (dataset.examples, lambda split: dataset.evaluation_batches(split, 1)):
        with pytest.raises(InputError, match="train, validation, test, got 'dev'"):
            ask("dev")
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        dataset.evaluation_batches("test", 0)
    with pytest.raises(InputError, match="start_step must be at least 0, got -1"):
        batches_of(dataset, -1, 2)


@pytest.mark.slow
def test_replicas_share_each_batch():
    """Two replicas see the halves of every batch; needs a process of its own."""
    program = """
        import tensorflow as tf
        from hne_tf import data
        from hne_tf.training.config import default

        cpu = tf.config.list_physical_devices("CPU")[0]
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        config = default().data
        config.update(pad_pixels=1, flip=True)
        dataset = data.load(config)
        batches = dataset.train_batches(batch_size=8, start_step=2, total_steps=5, seed=1)
        shared = strategy.experimental_distribute_dataset(batches)
        assert shared.element_spec[0]._component_specs[0].shape == (4, 8, 8, 1), shared.element_spec
        steps = 0
        for (images, labels), (whole, whole_labels) in zip(shared, batches):
            halves = tf.concat(strategy.experimental_local_results(images), 0)
            tf.debugging.assert_equal(halves, whole)
            halves = tf.concat(strategy.experimental_local_results(labels), 0)
            tf.debugging.assert_equal(halves, whole_labels)
            steps += 1
        assert steps == 3
    """
    root = pathlib.Path(data.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        cwd=root,
        timeout=120,
    )


def test_fit_sees_the_batches_of_training_epoch_after_epoch(batches_of):
    """An epoch has as many batches as examples fill, another order each time."""
    dataset = in_memory_set(20)
    seen = []

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, images):
            return self.dense(keras.layers.Flatten()(images))

        def train_step(self, data):
            seen.append(np.asarray(data[1]))
            return {"loss": 0.0}

    model = Recorder()
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(dataset.fit_batches(batch_size=8, seed=5), epochs=3, verbose=0, shuffle=False)
    expected = labels_of(batches_of(dataset, 0, 10, batch_size=8, seed=5))
    # Keras may draw an epoch to build the model by.
    starts = [16 * epoch for epoch in range(3)]
    assert any((np.concatenate(seen) == expected[start : start + 48]).all() for start in starts)
    with pytest.raises(InputError, match="training examples must be at least 21, got 20"):
        dataset.fit_batches(21)


def test_keras_does_not_run_out_of_data(recwarn):
    dataset = in_memory_set(20)
    held_out = dataset.evaluation_batches("test", 8)
    model = keras.Sequential(
        [keras.Input((1, 1, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    model.fit(dataset.fit_batches(8), validation_data=held_out, epochs=3, verbose=0)
    for _ in range(2):
        model.evaluate(held_out, verbose=0)
    assert [warning for warning in recwarn if "ran out of data" in str(warning.message)] == []
    assert held_out.cardinality() == 3
