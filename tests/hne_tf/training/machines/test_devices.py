import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.training.machines.devices import check_kernels, operation_threads
from hne_tf.tree import Tree

ROOT = pathlib.Path(__file__).parents[3]
HNE, SINGLE = (1, 2, 2, 2, 2), (1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("tree", "devices", "cores", "threads"),
    [
        (Tree(SINGLE), 1, 2, 2),
        (Exits(4), 1, 8, 8),
        # Most blocks of a late branch are computed by themselves.
        (Tree((1, 1, 1, 1, 2)), 1, 2, 2),
        (Tree((1, 1, 1, 2, 2)), 1, 2, 1),
        (Tree(HNE), 1, 2, 1),
        (Tree(HNE), 1, 64, 10),
        (Tree(HNE), 2, 64, 5),
        (Tree((16, 1, 1, 1, 1)), 1, 64, 4),
        (Tree((16, 1, 1, 1, 1)), 1, 1, 1),
    ],
)
def test_cores_are_divided_by_the_nodes_that_are_computed_at_once(tree, devices, cores, threads):
    assert operation_threads(tree, devices, cores) == threads


PROGRAM = """
import json, sys
import tensorflow as tf
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.config import default
from hne_tf.training.machines.devices import strategy_of, use_best_threads
overrides, begins, best = json.loads(sys.argv[1])
config = default()
config.update_from_flattened_dict({
    name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()
})
if begins:
    tf.constant(1)
if best:
    use_best_threads(config)
strategy_of(config, Cluster())
print(tf.config.threading.get_intra_op_parallelism_threads())
"""


def threads_of(overrides, begins=False, best=True):
    """Threads of an operation in a process of its own, where TensorFlow runs already or not."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([overrides, begins, best])],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return int(process.stdout)


def test_a_tree_on_a_cpu_leaves_cores_to_other_branches_unless_told_otherwise():
    tree = {"model.branching": [1, 2, 2, 2, 64]}
    # More nodes than this machine has cores.
    assert threads_of(tree) == 1
    assert threads_of(tree | {"distribution.operation_threads": 3}) == 3


def test_operations_of_all_branches_have_all_cores_unless_told_otherwise():
    grouped = {"training.factory": "grouped"}
    # 0 is TensorFlow's word for all.
    assert threads_of(grouped) == 0
    assert threads_of(grouped | {"distribution.operation_threads": 3}) == 3


def test_the_library_leaves_threads_alone_unless_told_otherwise():
    tree = {"model.branching": [1, 2, 2, 2, 64]}
    # 0 is TensorFlow's word for all.
    assert threads_of(tree, best=False) == 0
    assert threads_of(tree | {"distribution.operation_threads": 3}, best=False) == 3


def test_without_a_choice_a_running_tensorflow_is_left_as_it_is():
    assert threads_of({}, begins=True) == 0


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize(("channels", "kernel_size", "strides"), [(3, 1, 2), (8, 1, 2), (3, 3, 2)])
def test_a_model_whose_gradients_onednn_gets_wrong_is_refused(
    monkeypatch, onednn, channels, kernel_size, strides
):
    monkeypatch.setattr(hardware, "has_onednn", lambda: onednn)
    images = keras.Input((8, 8, channels))
    y = keras.layers.Conv2D(4, kernel_size, strides, name="shortcut")(images)
    inside = keras.Model(images, y)
    model = keras.Model(images, inside(images))
    if onednn and (channels, kernel_size) == (3, 1):
        with pytest.raises(InputError, match="8 input channels or more, got 3 in shortcut"):
            check_kernels(model)
    else:
        check_kernels(model)
