"""What the exits of the multi-exit ResNet owe to its depth: the same network without them.

    hne-sweep --config=configs/sweeps/depth_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/depth_cifar10.md

8 runs of 1 to 4 minutes on one core: single networks that end where an exit of
`architectures_cifar10.py` does, and a leaf of the tree of `objectives_cifar10.py`.
"""

import ml_collections

from configs.sweeps import grid_architectures_cifar10 as grid
from configs.sweeps import objectives_cifar10
from hne_tf.sweeps import plan

_SHAPE = ("widths", "units", "strides")


def _until_exit(exit_number: int) -> plan.Overrides:
    """The blocks of the multi-exit ResNet up to an exit, as a single network."""
    shape = {
        f"model.resnet.{field}": grid.MULTI_EXIT[f"model.multi_exit.{field}"][:exit_number]
        for field in _SHAPE
    }
    return {**grid.APART, **shape, "model.branching": (1,) * exit_number}


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Single networks on 1,500 images of CIFAR-10",
        base=objectives_cifar10.base(),
        groups=[
            ("a leaf of the objectives' tree", {**grid.APART, "model.branching": (1, 1, 1, 1)}),
            *((f"as deep as exit {number}", _until_exit(number)) for number in (2, 4, 6)),
        ],
        seeds=range(2),
        split="test",
    )
