"""Shapes, learning rates and distillation of each architecture, judged on validation.

    hne-sweep --config=configs/sweeps/grid_architectures_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/grid_architectures_cifar10.md

27 runs of 2 to 7 minutes on one core. Each architecture gets shapes of about 30
million multiply-adds, or distillation on and off, and two learning rates, so that
`architectures_cifar10.py` compares them at the settings that suit each. The flat
shapes were added after the others had been measured: `depth_cifar10.py` showed
that the blocks of the multi-exit ResNet, which end with more pixels, do better.
"""

import ml_collections

from configs.sweeps import objectives_cifar10
from hne_tf.sweeps import plan

DISTILLED, APART = {"objective.name": "hierarchical"}, {"objective.name": "independent"}
_RATE = "optimizer.learning_rate"


def _blocks(
    branching: tuple[int, ...], widths: tuple[int, ...], strides: tuple[int, ...]
) -> plan.Overrides:
    """Blocks of one unit."""
    return {
        "model.branching": branching,
        "model.resnet.widths": widths,
        "model.resnet.strides": strides,
        "model.resnet.units": (1,) * len(widths),
    }


# Wide: as the picture shrinks, width doubles. Flat: it shrinks once.
_WIDE, _FLAT = (1, 2, 2), (1, 2, 1)
WIDE_TREE = _blocks((1, 2, 2), (16, 32, 64), _WIDE)
BUSHY_TREE = _blocks((1, 2, 4), (16, 28, 56), _WIDE)
FLAT_TREE = _blocks((1, 2, 2), (16, 32, 32), _FLAT)
FLAT_BUSHY_TREE = _blocks((1, 2, 4), (16, 24, 24), _FLAT)
FLAT_NARROW_TREE = _blocks((1, 2, 2, 2), (16, 16, 16, 24), (*_FLAT, 1))
BRANCHES = {"model.branching": (1, 1, 1, 16)}
WIDE_BRANCHES = _blocks((1, 1, 6), (16, 32, 64), _WIDE)
FLAT_BRANCHES = _blocks((1, 1, 5), (16, 32, 32), _FLAT)
INDEPENDENT = {**APART, "model.branching": (3, 1, 1, 1)}
WIDE_INDEPENDENT = {**APART, **_blocks((3, 1, 1), (14, 28, 60), _WIDE)}
FLAT_INDEPENDENT = {**APART, **_blocks((3, 1, 1), (14, 28, 28), _FLAT)}
MULTI_EXIT = {
    "model.architecture": "multi_exit",
    "model.multi_exit.unit": "basic",
    "model.multi_exit.widths": (16, 32, 32, 32, 64, 64),
    "model.multi_exit.units": (2, 1, 1, 1, 1, 1),
    "model.multi_exit.strides": (1, 2, 1, 1, 2, 1),
    "objective.average": "last",
}
FLAT_MULTI_EXIT = {
    **MULTI_EXIT,
    "model.multi_exit.widths": (16, *(32,) * 6),
    "model.multi_exit.units": (1,) * 7,
    "model.multi_exit.strides": (1, 2, *(1,) * 5),
}
MSDNET = {
    "model.architecture": "msdnet",
    "model.msdnet.units": (3, 2, 2, 2, 2),
    "model.msdnet.head_width": 64,
    "objective.average": "last",
}


def _slower(overrides: plan.Overrides) -> plan.Overrides:
    return {**overrides, _RATE: 0.1}


# At a rate of 0.2, the best of `grid_cifar10.py`, unless the name tells another.
GROUPS = (
    ("tree", DISTILLED),
    ("tree, 0.1", _slower(DISTILLED)),
    ("tree, 0.4", {**DISTILLED, _RATE: 0.4}),
    ("wide tree", {**DISTILLED, **WIDE_TREE}),
    ("wide tree, 0.1", _slower({**DISTILLED, **WIDE_TREE})),
    ("bushy tree", {**DISTILLED, **BUSHY_TREE}),
    ("flat tree", {**DISTILLED, **FLAT_TREE}),
    ("flat bushy tree", {**DISTILLED, **FLAT_BUSHY_TREE}),
    ("flat narrow tree", {**DISTILLED, **FLAT_NARROW_TREE}),
    ("branches", {**DISTILLED, **BRANCHES}),
    ("wide branches", {**DISTILLED, **WIDE_BRANCHES}),
    ("wide branches, 0.1", _slower({**DISTILLED, **WIDE_BRANCHES})),
    ("wide branches, undistilled", {**APART, **WIDE_BRANCHES}),
    ("flat branches", {**DISTILLED, **FLAT_BRANCHES}),
    ("flat branches, undistilled", {**APART, **FLAT_BRANCHES}),
    ("independent", INDEPENDENT),
    ("wide independent", WIDE_INDEPENDENT),
    ("wide independent, 0.1", _slower(WIDE_INDEPENDENT)),
    ("flat independent", FLAT_INDEPENDENT),
    ("multi-exit", {**MULTI_EXIT, **APART}),
    ("multi-exit, distilled", {**MULTI_EXIT, **DISTILLED}),
    ("multi-exit, distilled, 0.1", _slower({**MULTI_EXIT, **DISTILLED})),
    ("flat multi-exit, distilled", {**FLAT_MULTI_EXIT, **DISTILLED}),
    ("MSDNet", {**MSDNET, **APART}),
    ("MSDNet, 0.1", _slower({**MSDNET, **APART})),
    ("MSDNet, distilled", {**MSDNET, **DISTILLED}),
    ("MSDNet, distilled, 0.1", _slower({**MSDNET, **DISTILLED})),
)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Settings of each architecture for 1,500 images of CIFAR-10, by validation",
        base=objectives_cifar10.base(),
        groups=GROUPS,
        seeds=range(1),
        split="validation",
        equal_computation=True,
    )
