"""Learning rates for 1,500 images of CIFAR-10, judged on validation.

    hne-sweep --config=configs/sweeps/grid_cifar10.py \\
        --root=runs/sweeps --jobs=2 --results=results/grid_cifar10.md

3 runs of independent leaves, of about 4 CPU minutes each. What the grid on digits
left open: whether the rate that is best for 150 digits in batches of 32 is best
for other pictures, too. Validation has 5,000 images here.
"""

import ml_collections

from configs.sweeps import objectives_cifar10
from hne_tf.sweeps import plan

RATES = (0.05, 0.1, 0.2)


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    return plan.describe(
        title="Learning rates for 1,500 images of CIFAR-10, by validation",
        base=objectives_cifar10.base(),
        groups=[
            (
                f"rate {rate}",
                {"objective.name": "independent", "optimizer.learning_rate": rate},
            )
            for rate in RATES
        ],
        seeds=range(1),
        split="validation",
    )
