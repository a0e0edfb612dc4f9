"""What a run leaves as it is, and what it trains at another rate."""

import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from hne_tf.data import load
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.training import build, optimizer, trained
from hne_tf.training.fine_tuning import freezing
from hne_tf.training.fine_tuning.freezing import Freezing
from hne_tf.training.fine_tuning.rates import set_block_rates
from hne_tf.training.loop import train
from hne_tf.training.schedule import Schedule
from hne_tf.training.workdir import Workdir
from hne_tf.tree import Tree

NETWORK = ResNet("basic", (4, 4), (1, 1), (2, 1), stem_width=4)
DIGITS = ImageSpec((8, 8, 1), tuple("0123456789"), mean=(78.0,), std=(96.0,))
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)


@pytest.fixture(params=[TreeEnsemble, GroupedEnsemble])
def model(request):
    return request.param(NETWORK, Tree((1, 2)), DIGITS)


def reader_of(workdir, config):
    """Reads the weights of a checkpoint."""
    model = build.training_model(config, load(config.data).spec)
    reader = tf.train.Checkpoint(model=model)

    def read(step):
        reader.read(str(workdir.checkpoints / f"ckpt-{step}")).expect_partial()
        return weights.read(model)

    return read


def moved(before, after):
    """Names of the weights that differ."""
    return {name for name, value in after.items() if np.abs(value - before[name]).max() > 0}


def in_block(values, *blocks):
    return {name for name in values if int(name[len("block")]) in blocks}


@pytest.mark.slow
def test_a_frozen_block_stands_still_until_it_is_thawed(tiny_config, tmp_path):
    config = tiny_config(
        model__branching=(1, 1, 1),
        model__resnet__widths=(2, 2, 2),
        optimizer__frozen_epochs=(0.5, 0.0, 0.0),
        optimizer__block_rates=(1.0, 0.0, 1.0),
        training__epochs=1.0,
        training__checkpoint_every_epochs=0.5,
        training__deterministic=True,
        training__accumulate_steps=2,
    )
    workdir = Workdir(tmp_path / "run")
    train(config, workdir, report=str)
    at_step = reader_of(workdir, config)
    start, half, end = map(at_step, (0, 5, 10))
    # Moving statistics, too.
    assert moved(start, half) == in_block(start, 2)
    assert moved(half, end) == in_block(start, 0, 2)
    # It goes on from there as if it had not stopped.
    for path in workdir.checkpoints.glob("ckpt-10.*"):
        path.unlink()
    train(config, workdir, report=str)
    assert moved(at_step(10), end) == set()


def test_norms_are_frozen_to_the_end(model):
    before = weights.read(model)
    frozen = Freezing(model, (0, 0), norms=True)
    assert frozen.apply(0)
    assert not frozen.apply(3)
    model(IMAGES, training=True)
    names = {
        name for names, variable in weights.parts(model) if variable.trainable for name in names
    }
    assert not any("/norm/" in name for name in names)
    assert {name for name in before if "kernel" in name} < names
    assert moved(before, weights.read(model)) == set()


def test_blocks_are_thawed_at_their_steps(model):
    frozen = Freezing(model, (5, 0))
    assert frozen.next_change(0) == 5
    assert frozen.next_change(5) == math.inf
    counts = []
    for step in (0, 4, 5):
        frozen.apply(step)
        counts.append(len(model.trainable_variables))
    assert counts[0] == counts[1] < counts[2]
    assert not Freezing(model, (0, math.inf)).next_change(0) < math.inf


def test_layers_that_are_frozen_by_themselves_stay_so(model):
    (_, network), *_ = model.networks
    network.get_layer("stem").trainable = False
    count = len(model.trainable_variables)
    frozen = Freezing(model, (5, 0))
    frozen.apply(0)
    frozen.apply(5)
    assert len(model.trainable_variables) == count
    assert not network.get_layer("stem").trainable


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_block_learns_at_a_part_of_the_rate(tiny_config, model, name):
    config = tiny_config(
        optimizer__name=name,
        optimizer__momentum=0.0,
        optimizer__weight_decay=0.0,
        optimizer__warmup_epochs=0.0,
    )
    start, moves = [np.asarray(variable) for variable in model.trainable_variables], []
    for rates in ((1.0, 1.0), (0.25, 1.0)):
        for variable, value in zip(model.trainable_variables, start, strict=True):
            variable.assign(value)
        rule = optimizer.optimizer(config, Schedule.of(config, 320))
        rule.build(model.trainable_variables)
        set_block_rates(rule, model, rates)
        gradients = [tf.ones(variable.shape) for variable in model.trainable_variables]
        rule.apply(gradients, model.trainable_variables)
        after = model.trainable_variables
        moves.append(
            [float((a - b).mean()) for a, b in zip(map(np.asarray, after), start, strict=True)]
        )
    block_of = {id(v): places[0][0] for places, n in model.networks for v in n.weights}
    blocks = [block_of[id(variable)] for variable in model.trainable_variables]
    expected = [0.25 if block == 0 else 1.0 for block in blocks]
    assert set(expected) == {0.25, 1.0}
    np.testing.assert_allclose(np.divide(moves[1], moves[0]), expected, rtol=1e-3)


def test_adamw_is_keras_s_and_decays_kernels(tiny_config, model):
    config = tiny_config(optimizer__name="adamw", optimizer__weight_decay=0.3)
    config.optimizer.warmup_epochs = 0.0
    assert build.training_layers(config).weight_decay == 0
    rule = optimizer.optimizer(config, Schedule.of(config, 320))
    assert type(rule) is keras.optimizers.AdamW
    rule.build(model.trainable_variables)
    before = weights.read(model)
    rule.apply(
        [tf.zeros(variable.shape) for variable in model.trainable_variables],
        model.trainable_variables,
    )
    kernels = {name for name in before if name.endswith("kernel")}
    assert moved(before, weights.read(model)) == kernels


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, "optimizer.name must be one of sgd, adamw, got 'lion'"),
        ({"block_rates": (1.0,)}, "block_rates must have a number for each of the 2 blocks"),
        ({"block_rates": (1.0, -1.0)}, "block_rates must be 0 or more, got -1.0"),
        ({"block_rates": (0.0, 0.0)}, "must leave a block to train from the beginning"),
        ({"block_rates": (0.0, 1.0), "frozen_epochs": (0.0, 1.0)}, "must leave a block to train"),
        ({"frozen_epochs": (1.0, 0.0, 0.0)}, "frozen_epochs must have a number for each of the 2"),
        ({"frozen_epochs": (-1.0, 0.0)}, "frozen_epochs must be 0 or more, got -1.0"),
        ({"frozen_epochs": ("a", 0.0)}, "frozen_epochs must be numbers, got 'a'"),
        ({"name": "adamw", "weight_decay": -1.0}, "weight_decay must be 0 or more, got -1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny_config, settings, message):
    config = tiny_config()
    config.optimizer.update(settings)
    model = TreeEnsemble(NETWORK, Tree((1, 2)), DIGITS)
    schedule = Schedule.of(config, 320)
    with pytest.raises(InputError) as refused:
        (optimizer.optimizer(config, schedule), freezing.of(config, model, schedule))
    assert message in str(refused.value)


def test_chosen_nodes_are_trained_from_a_trained_run(tiny_config, trained_workdir, tmp_path):
    config = tiny_config(training__epochs=1.0, training__checkpoint_every_epochs=1.0)
    config.training.start_from = str(trained_workdir.path)
    config.optimizer.trained_nodes = ("block1.node1", "block2.node3")
    workdir = Workdir(tmp_path / "chosen")
    train(config, workdir, report=str)
    read = reader_of(workdir, config)
    earlier = weights.read(trained.restore(trained_workdir, report=str).model)
    begun, ended = read(0), read(10)
    for name, value in earlier.items():
        np.testing.assert_array_equal(begun[name], value, err_msg=name)
    nodes = {".".join(name.replace("/", ".").split(".")[:2]) for name in moved(begun, ended)}
    assert nodes == {"block1.node1", "block2.node3"}
    (record, *_) = [json.loads(line) for line in workdir.metrics_path.read_text().splitlines()]
    total = sum(value.size for value in earlier.values())
    assert 0 < record["trained_parameters"] < total / 2
    # It goes on as any run does.
    config.training.epochs = 1.0
    assert train(config, workdir, report=str) == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer.trained_nodes": ("block7.node0",)}, "block0.node0 to .*, got 'block7.node0'"),
        ({"training.start_from": "nowhere"}, "must be the workdir of a run, got 'nowhere'"),
        (
            {"optimizer.trained_nodes": ("block0.node0",), "training.factory": "grouped"},
            "training.factory must be branched for optimizer.trained_nodes",
        ),
        (
            {
                "optimizer.trained_nodes": ("block1.node0", "block0.node0"),
                "optimizer.block_rates": (0.0, 1.0, 1.0),
            },
            r"blocks with a rate above 0 in optimizer.block_rates, got 'block0.node0'",
        ),
        (
            {
                "optimizer.trained_nodes": ("block0.node0",),
                "optimizer.frozen_epochs": (0.5, 0.0, 0.0),
            },
            r"must leave one of optimizer.trained_nodes to train from the beginning",
        ),
    ],
)
def test_nodes_and_runs_that_there_are_not(tiny_config, tmp_path, fields, message):
    config = tiny_config(training__epochs=1.0)
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=message):
        train(config, Workdir(tmp_path / "run"), report=str)


def test_a_run_of_another_network_is_no_start(tiny_config, trained_workdir, tmp_path):
    config = tiny_config(training__epochs=1.0, model__resnet__widths=(3, 3, 3))
    config.training.start_from = str(trained_workdir.path)
    with pytest.raises(InputError, match="start_from must be a run of the same tree and network"):
        train(config, Workdir(tmp_path / "run"), report=str)
