"""A single network of the sweeps of objectives, for a tree to learn from.

    for seed in 0 1 2 3 4 5 6 7; do
      hne-train --config=configs/outside_teacher.py:digits --config.seed=$seed \\
          --workdir=runs/teachers/digits_$seed
    done

and likewise with `cifar10`, 1,500 images of it. A quarter of a minute each on digits,
two minutes on CIFAR-10, on 2 cores.
"""

import ml_collections

from configs.sweeps import objectives_cifar10, objectives_digits

IMAGES = {"digits": objectives_digits, "cifar10": objectives_cifar10}


def get_config(images: str = "digits") -> ml_collections.ConfigDict:
    """The settings of a run on the images of a sweep."""
    config = IMAGES[images].base()
    config.model.branching = (1,) * len(config.model.branching)
    config.objective.name = "independent"
    return config
