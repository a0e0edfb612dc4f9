"""What holds for every architecture, tree and layer factory."""

import concurrent.futures
import functools
import multiprocessing

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.export import signatures
from hne_tf.models import weights
from hne_tf.models.folding import fold
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.objectives import HierarchicalDistillation

TOLERANCE = 1e-4


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


def assert_answers(model, images, expected):
    assert_close(model(images, training=False), expected)


def test_every_prefix_equals_the_first_leaves(model, images, leaf_logits):
    for size in range(1, model.tree.leaves + 1):
        assert_answers(model.prefix(size), images, leaf_logits[:, :size])


def test_weights_go_by_canonical_name(case, model, images, leaf_logits):
    other = case.build()
    weights.load(other, weights.read(model))
    assert_answers(other, images, leaf_logits)


def test_folded_weights_load_into_the_deploy_factory(case, model, images, leaf_logits):
    deployed = case.build(DeployLayers())
    # Weights without norms are folded already.
    weights.load(deployed, fold(weights.read(model)))
    assert_answers(deployed, images, leaf_logits)


def test_all_factories_name_the_same_kernels(case, model):
    def kernels(model):
        return {n: v.shape for n, v in weights.read(model).items() if n.endswith("kernel")}

    for layers in (TrainingLayers(), DeployLayers(), GroupedLayers()):
        assert kernels(case.build(layers)) == kernels(model)


def test_keras_file(model, images, leaf_logits, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_answers(loaded, images, leaf_logits)
    assert weights.read(loaded).keys() == weights.read(model).keys()


def test_checkpoint(case, model, images, leaf_logits, tmp_path):
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    other = case.build()
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    assert_answers(other, images, leaf_logits)


@pytest.fixture(scope="module")
def endpoints(deployed_model, tmp_path_factory):
    """A SavedModel with every size."""
    folder = str(tmp_path_factory.mktemp("saved") / "model")
    sizes = range(1, deployed_model.tree.leaves + 1)
    signatures.save(signatures.signatures(deployed_model, sizes), folder)
    # Signatures live only as long as the model that they were loaded with.
    return tf.saved_model.load(folder)


def test_saved_model_answers_for_every_size(model, endpoints, images, leaf_logits, numpy_answer):
    sizes = range(1, model.tree.leaves + 1)
    assert set(endpoints.signatures) == {
        "serving_default",
        *(f"ensemble_{size}" for size in sizes),
        *(f"step_{size}" for size in sizes),
    }
    for name, size in [
        ("serving_default", model.tree.leaves),
        *((f"ensemble_{size}", size) for size in sizes),
    ]:
        got = endpoints.signatures[name](images=tf.constant(images))
        expected = numpy_answer(leaf_logits, size)
        assert got.keys() == {"logits", "probabilities"}
        for output, value in got.items():
            assert_close(value, expected[output])


def test_saved_model_steps_walk_through_every_size(
    model, endpoints, images, leaf_logits, numpy_answer
):
    newest = {"images": tf.constant(images)}
    for step in model.tree.steps:
        start = f"cache_{step.branch_block - 1}" if step.branch_block else "images"
        inputs = {"cache" if step.branch_block else "images": newest[start]}
        if step.size > 1:
            inputs["running_sum"] = newest["running_sum"]
        got = endpoints.signatures[f"step_{step.size}"](**inputs)
        expected = numpy_answer(leaf_logits, step.size)
        assert got.keys() == {
            "running_sum",
            "probabilities",
            *(f"cache_{block}" for block in step.cached_blocks),
        }
        for output in ("running_sum", "probabilities"):
            assert_close(got[output], expected[output])
        newest |= got


def test_saved_model_takes_any_batch(model, endpoints, images, leaf_logits, numpy_answer):
    for batch in (1, 3):
        got = endpoints.signatures["serving_default"](images=tf.constant(images[:batch]))
        expected = numpy_answer(leaf_logits[:batch], model.tree.leaves)
        assert_close(got["probabilities"], expected["probabilities"])


# Training.

LABELS = np.array([0, 1, 2, 1], np.int32)


def take_step(model, strategy, images):
    """Weights after one step of gradient descent on the mean loss of the global batch."""
    loss = HierarchicalDistillation(model.tree.sizes)
    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)

    def replica_step(images, labels):
        with tf.GradientTape() as tape:
            values = loss.call(labels, model(images, training=True))
            mean = tf.reduce_sum(values) / len(LABELS)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(mean, variables), variables)

    data = tf.data.Dataset.from_tensor_slices((images, LABELS)).batch(len(LABELS))
    for batch in strategy.experimental_distribute_dataset(data):
        # Eagerly: these few operations take less time than tracing them.
        strategy.run(replica_step, batch)
    return weights.read(model)


def assert_same_step(got, expected, before, rtol):
    """Compares weights after a step, which moves them all."""
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=rtol, atol=1e-4, err_msg=name)
        # The norm after the next convolution takes out what a linear unit adds to all pixels.
        if not name.endswith("project/norm/beta"):
            assert np.abs(value - before[name]).max() > 1e-6, f"{name} stood still"


def test_a_step_of_the_grouped_form_equals_one_of_the_branched(trained_case, trained_model, images):
    grouped = trained_case.build(GroupedLayers(split=True))
    before = weights.read(trained_model)
    weights.load(grouped, before)
    assert_answers(grouped, images, trained_model(images, training=False))
    one_device = tf.distribute.get_strategy()
    expected = take_step(trained_model, one_device, images)
    got = take_step(grouped, one_device, images)
    assert_same_step(got, expected, before, rtol=1e-4)


# Distribution.


def split_the_cpu():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@functools.cache
def mirrored_strategy():
    """One for all cases: a second one in a process reuses the first one's collective keys."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def step_on_two_replicas(form, config, values, images):
    strategy = mirrored_strategy()
    with strategy.scope():
        model = form.from_config(config)
    weights.load(model, values)
    return take_step(model, strategy, images)


@pytest.fixture(scope="module")
def two_devices():
    """A process of its own: TensorFlow's devices are fixed once it has started."""
    with concurrent.futures.ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), split_the_cpu
    ) as process:
        yield process


@pytest.mark.slow
def test_a_step_on_two_replicas_equals_one_on_the_whole_batch(trained_model, two_devices, images):
    before = weights.read(trained_model)
    form, config = type(trained_model), trained_model.get_config()
    mirrored = two_devices.submit(step_on_two_replicas, form, config, before, images)
    expected = take_step(trained_model, tf.distribute.get_strategy(), images)
    got = mirrored.result(timeout=600)
    assert_same_step(got, expected, before, rtol=1e-3)
