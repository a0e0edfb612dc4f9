"""Runs of a Keras model that the settings name."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from hne_tf.bin import evaluate, train
from hne_tf.data import load
from hne_tf.errors import InputError
from hne_tf.models import weights
from hne_tf.training import build, trained
from hne_tf.training import config as configs
from hne_tf.training.fine_tuning.given import given
from hne_tf.training.loop import train as train_run
from hne_tf.training.run import TrainingRun
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir

SHAPE = (8, 8, 1)


def network(input_shape=(None, None, 1), width=4, weights=None):
    """Three convolutions, of which the second has a norm and a shortcut."""
    del weights
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(width, 3, 2, padding="same", activation="relu", name="first")(inputs)
    y = layers.Conv2D(width, 3, padding="same", use_bias=False, name="second")(x)
    x = layers.Add(name="sum")([x, layers.BatchNormalization(momentum=0.9, name="norm")(y)])
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="third")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="top")(x), name="net")


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def with_dropout():
    """Layers that draw random numbers in training."""
    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, 2, name="first")(layers.Dropout(0.2, name="dropped")(inputs))
    x = layers.Flatten()(layers.Dropout(0.5, name="dropout")(x))
    return keras.Model(inputs, layers.Dense(5, name="top")(x))


@pytest.fixture
def file(tmp_path):
    keras.utils.set_random_seed(3)
    path = tmp_path / "network.keras"
    network(SHAPE).save(path)
    return path


@pytest.fixture
def keras_config(tiny_config):
    """Settings of a tiny run of a Keras model on digits."""

    def make(builder, **settings):
        config = tiny_config(
            model__branching=(1, 2), training__epochs=1.0, optimizer__warmup_epochs=0.5
        )
        config.model.architecture = "keras"
        config.model.keras.update(builder=str(builder), mean=(100.0,), std=(90.0,), **settings)
        return config

    return make


def test_a_run_is_rebuilt_without_its_builder(keras_config, file, tmp_path, run_binary):
    config_file, workdir = tmp_path / "config.py", tmp_path / "run"
    config = keras_config(file, cut_at=("sum",))
    config.training.epochs = 0.2
    config.optimizer.update(learning_rate=1e-9, warmup_epochs=0.0)
    settings = json.dumps(config.to_dict())
    config_file.write_text(
        "import json, ml_collections\nfrom hne_tf.training.config import from_json\n"
        "def get_config():\n"
        f"    return ml_collections.ConfigDict(from_json(json.loads({settings!r})))\n"
    )
    flags = [f"--config={config_file}", f"--workdir={workdir}"]
    code, _, errors = run_binary(train, *flags)
    assert code == 0, errors
    file.rename(tmp_path / "elsewhere.keras")
    # It goes on, too: the same command finds nothing left to do.
    assert run_binary(train, *flags)[0] == 0
    code, _, errors = run_binary(evaluate, f"--workdir={workdir}")
    assert code == 0, errors
    run = trained.restore(Workdir(workdir), report=str)
    assert run.model.images.mean == (100.0,)
    assert run.model.architecture.cut_at == ("sum",)
    kernel = keras.models.load_model(tmp_path / "elsewhere.keras").get_layer("first").kernel
    np.testing.assert_allclose(
        weights.read(run.model)["block0/node0/first/kernel"], kernel, atol=1e-6
    )


def started(config, tmp_path):
    """The tree of a run that begins."""
    build.check_model(config)
    spec = load(config.data).spec
    config, model = given(config, spec, Workdir(tmp_path / "run"), restart=False, report=str)
    tree = build.training_model(config, spec)
    model.start(tree)
    return tree


def test_nodes_start_from_the_model(keras_config, file, tmp_path):
    source = keras.models.load_model(file)
    config = keras_config(file, cut_at=("sum",), perturb=(0.0, 0.1), reinitialise=())
    values = weights.read(started(config, tmp_path))
    np.testing.assert_allclose(
        values["block0/node0/first/kernel"], source.get_layer("first").kernel, atol=1e-6
    )
    third = np.asarray(source.get_layer("third").kernel)
    nodes = [values[f"block1/node{node}/third/kernel"] for node in range(2)]
    for node in nodes:
        assert 0.05 < (node - third).std() / third.std() < 0.2
    assert np.abs(nodes[0] - nodes[1]).max() > 1e-3
    # A new classifier, of ten classes.
    assert values["block1/node0/head/kernel"].shape == (8, 10)


def test_a_run_with_dropout_resumes_exactly(keras_config, tmp_path):
    config = keras_config(f"{__name__}.with_dropout", cut_at=("first",), weights="none")
    config.training.update(deterministic=True, checkpoint_every_epochs=0.5)
    workdir = Workdir(tmp_path / "run")
    train_run(config, workdir, report=str)
    whole = weights.read(trained.restore(workdir, report=str).model)
    for path in workdir.checkpoints.glob("ckpt-10.*"):
        path.unlink()
    train_run(config, workdir, report=str)
    for name, value in weights.read(trained.restore(workdir, report=str).model).items():
        np.testing.assert_array_equal(value, whole[name], err_msg=name)


def test_an_average_of_weights_starts_from_the_model(keras_config, file, tmp_path):
    config = keras_config(file, cut_at=("sum",))
    config.training.ema_momentum = 0.99
    spec = load(config.data).spec
    config, model = given(config, spec, Workdir(tmp_path / "run"), restart=False, report=str)
    one_device = tf.distribute.get_strategy()
    run = TrainingRun(config, spec, Schedule.of(config, 320), one_device, model)
    run.start()
    kernel = keras.models.load_model(file).get_layer("first").kernel
    values = weights.read(run.checkpoint.average)
    np.testing.assert_array_equal(values["block0/node0/first/kernel"], kernel)


def test_a_function_makes_the_model_of_the_images(keras_config, file, tmp_path):
    config = keras_config(
        f"{__name__}.network", options={"width": 6}, weights=str(file), reinitialise=(0,)
    )
    with pytest.raises(InputError, match="must hold weights of 'net'"):
        started(config, tmp_path)
    config.model.keras.options.width = 4
    config.model.keras.cut_at = ("sum",)
    values = weights.read(started(config, tmp_path))
    source = keras.models.load_model(file)
    np.testing.assert_allclose(
        values["block1/node1/third/kernel"], source.get_layer("third").kernel, atol=1e-6
    )
    first = np.asarray(source.get_layer("first").kernel)
    assert np.abs(values["block0/node0/first/kernel"] - first).max() > 0.1


def test_images_are_normalised_as_the_data_set_s_for_fresh_weights(keras_config, tmp_path):
    config = keras_config(f"{__name__}.network", weights="none")
    config.model.keras.update(mean=(), std=())
    assert started(config, tmp_path).images == load(config.data).spec


def test_the_network_is_no_setting(keras_config, file, tmp_path):
    config = keras_config(file)
    spec, workdir = load(config.data).spec, Workdir(tmp_path / "run")
    described, _ = given(config, spec, workdir, restart=False, report=str)
    assert described.model.keras.network
    assert configs.digest(described) == configs.digest(config)
    assert configs.differences(config, described) == []
    before = configs.digest(config)
    config.model.keras.options.width = 6
    assert configs.digest(config) != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"builder": ""}, "model.keras.builder must be an import path"),
        ({"builder": "no.keras"}, "got no file no.keras"),
        ({"builder": f"{__name__}.Subclassed"}, "must be a functional Keras model, keras.Model("),
        ({"builder": "os.getcwd"}, "must return a Keras model, got str"),
        ({"builder": "no_such_module.net"}, "a module that can be imported"),
        ({"options": {"width": 3}}, "options must be empty for a file"),
        ({"weights": "imagenet"}, "must be none or a file, got 'imagenet'"),
        ({"weights": "no.weights.h5"}, "got no file no.weights.h5"),
        ({"classifier": "keep"}, "must give logits of the 10 classes, got outputs of shape (5,)"),
        ({"classifier": "odd"}, "one of keep, replace, add, got 'odd'"),
        ({"cut_at": ("no",)}, "must name layers of the model, got 'no'"),
        ({"cut_at": ("second",)}, "a single activation is all that later layers read"),
        ({"mean": (), "std": ()}, "must be those that the model was trained with"),
        ({"mean": ()}, "must be set together"),
        ({"mean": (1.0,) * 3}, "a number for each of the 1 channels"),
        ({"std": (0.0,)}, "std must be above 0"),
        ({"perturb": (0.1,)}, "a number for each of the 2 blocks, got (0.1,)"),
        ({"reinitialise": (2,)}, "reinitialise must name blocks from 0 to 1, got 2"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(keras_config, file, tmp_path, settings, message):
    config = keras_config(file)
    config.model.keras.update(settings)
    with pytest.raises(InputError) as refused:
        started(config, tmp_path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_model_that_cannot_be_cut_often_enough_is_refused(keras_config, file, tmp_path):
    config = keras_config(file)
    config.model.branching = (1, 2, 1, 1, 1, 1)
    with pytest.raises(InputError, match="must have 5 places to cut it in 6 blocks with weights"):
        started(config, tmp_path)


def test_layers_keep_their_precision(keras_config, file, tmp_path):
    config = keras_config(file)
    config.training.precision = "bfloat16"
    with pytest.raises(InputError, match=r"training\.precision must be float32 for a Keras model"):
        started(config, tmp_path)
