"""Networks of one budget compared on 1,500 images of CIFAR-10, three seeds.

    hne-sweep --config=configs/sweeps/architectures_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/architectures_cifar10.md

24 runs, each architecture at the settings that `grid_architectures_cifar10.py`
shows to be best on validation, and the tree of `objectives_cifar10.py`. The largest
answer of each costs 31 to 35 million multiply-adds, the smallest 9 to 14. Branches
and trees average; an exit answers alone or together with the exits before it, and
both are shown.
"""

import ml_collections

from configs.sweeps import grid_architectures_cifar10 as grid
from configs.sweeps import objectives_cifar10
from hne_tf.sweeps import plan

ARCHITECTURES = (
    ("tree", {**grid.DISTILLED, **grid.FLAT_NARROW_TREE}),
    ("tree of the objectives", grid.DISTILLED),
    ("branches", {**grid.APART, **grid.FLAT_BRANCHES}),
    ("independent networks", grid.FLAT_INDEPENDENT),
    ("multi-exit ResNet", {**grid.MULTI_EXIT, **grid.APART}),
    ("multi-exit ResNet, distilled", {**grid.MULTI_EXIT, **grid.DISTILLED}),
    ("MSDNet", {**grid.MSDNET, **grid.APART}),
    ("MSDNet, distilled", {**grid.MSDNET, **grid.DISTILLED}),
)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Architectures on 1,500 images of CIFAR-10",
        base=objectives_cifar10.base(),
        groups=ARCHITECTURES,
        seeds=range(3),
        split="test",
        reference="tree",
        equal_computation=True,
    )
