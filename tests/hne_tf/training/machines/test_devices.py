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


TREE = {"model.branching": [1, 2, 2, 2, 64]}
GROUPED = {"training.factory": "grouped"}
THREE = {"distribution.operation_threads": 3}
# Settings, whether a command asks for its best threads, and the threads that an operation gets.
# 0 is TensorFlow's word for all cores.
CASES = [
    # More nodes than this machine has cores: each leaves cores to the others.
    (TREE, True, 1),
    (TREE | THREE, True, 3),
    # Operations of all branches have all cores.
    (GROUPED, True, 0),
    (GROUPED | THREE, True, 3),
    # The library leaves threads alone unless told otherwise.
    (TREE, False, 0),
    (TREE | THREE, False, 3),
]
PROGRAM = """
import json, multiprocessing, sys
import tensorflow as tf
from hne_tf.training.machines.cluster import Cluster
from hne_tf.training.config import default
from hne_tf.training.machines.devices import strategy_of, use_best_threads

def threads_of(overrides, best, *_):
    config = default()
    config.update_from_flattened_dict({
        name: tuple(value) if isinstance(value, list) else value
        for name, value in overrides.items()
    })
    if best:
        use_best_threads(config)
    strategy_of(config, Cluster())
    return tf.config.threading.get_intra_op_parallelism_threads()

# Threads are fixed once TensorFlow runs, so each case has a process, which has it loaded.
with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
    threads = pool.starmap(threads_of, json.loads(sys.argv[1]), chunksize=1)
# Here it runs, and its threads stay as they are.
tf.constant(1)
print(threads, threads_of({}, True))
"""


@pytest.mark.slow
def test_threads_of_an_operation():
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert process.stdout == f"{[expected for *_, expected in CASES]} 0\n", process.stderr


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
