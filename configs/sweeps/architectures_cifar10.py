"""Networks of one budget compared on 1,500 images of CIFAR-10, two seeds.

    hne-sweep --config=configs/sweeps/architectures_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/architectures_cifar10.md

14 runs. The largest answer of each costs 30 to 34 million multiply-adds (MSDNet's
exits 30 alone and 35 together), the smallest 10 or 11. Branches and trees average;
an exit answers alone, and the evaluations hold the running ensemble of exits too.
"""

import ml_collections

from configs.sweeps import objectives_cifar10
from hne_tf.sweeps import plan

_DISTILLED, _APART = {"objective.name": "hierarchical"}, {"objective.name": "independent"}
_MULTI_EXIT = {
    "model.architecture": "multi_exit",
    "model.widths": (16, 32, 32, 32, 64, 64),
    "model.units": (2, 1, 1, 1, 1, 1),
    "model.strides": (1, 2, 1, 1, 2, 1),
    "objective.average": "last",
}
_MSDNET = {
    "model.architecture": "msdnet",
    "model.units": (3, 2, 2, 2, 2),
    "model.head_width": 64,
    "objective.average": "last",
}
ARCHITECTURES = (
    ("tree", _DISTILLED),
    ("branches", {**_DISTILLED, "model.branching": (1, 1, 1, 16)}),
    ("independent networks", {**_APART, "model.branching": (3, 1, 1, 1)}),
    ("multi-exit ResNet", {**_MULTI_EXIT, **_APART}),
    ("multi-exit ResNet, distilled", {**_MULTI_EXIT, **_DISTILLED}),
    ("MSDNet", {**_MSDNET, **_APART}),
    ("MSDNet, distilled", {**_MSDNET, **_DISTILLED}),
)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Architectures on 1,500 images of CIFAR-10",
        base=objectives_cifar10.base(),
        groups=ARCHITECTURES,
        seeds=range(2),
        split="test",
        reference="tree",
        equal_computation=True,
    )
