"""The grid that settings of hierarchical distillation are chosen by, judged on validation.

    hne-sweep --config=configs/sweeps/grid_digits.py --root=runs/sweeps --jobs=2 \\
        --results=results/grid_digits.md

Declared before it was run; digits with 150 labelled images as in
`objectives_digits.py`, three seeds. 27 groups, 81 runs of 30 CPU seconds each,
half an hour on 2 cores:

- `alpha` in 0.25, 0.5, 1 and temperature in 1, 2, 4, each added and traded, with
  a constant alpha (15: traded with an alpha of 1 would leave no labels);
- at temperature 2, each alpha and combination with a ramp of alpha over the
  first quarter of the run (5);
- half and twice the learning rate, at alpha 0.5 and temperature 2, added and
  traded (4);
- independent leaves at the three learning rates, to compare with (3).

Validation has 180 images, so that one image is half a percent: a setting is
better than another where the means are further apart than a standard deviation.
"""

import itertools
from typing import Any

import ml_collections

from configs.sweeps import objectives_digits
from hne_tf.sweeps import plan

LEARNING_RATE = 0.1
RAMP_EPOCHS = 15.0  # a quarter of the run

# Weights and combinations; a full weight is only added.
WEIGHTS = ((0.25, "added"), (0.5, "added"), (1.0, "added"), (0.25, "traded"), (0.5, "traded"))


def get_config() -> ml_collections.ConfigDict:
    """The settings of the sweep."""
    points = [
        *((*weight, temperature) for weight in WEIGHTS for temperature in (1.0, 2.0, 4.0)),
        *((*weight, 2.0, RAMP_EPOCHS) for weight in WEIGHTS),
        *(
            (0.5, combine, 2.0, 0.0, rate)
            for combine, rate in itertools.product(
                ("added", "traded"), (LEARNING_RATE / 2, LEARNING_RATE * 2)
            )
        ),
    ]
    rates = (LEARNING_RATE, LEARNING_RATE / 2, LEARNING_RATE * 2)
    base = objectives_digits.base()
    base.optimizer.learning_rate = LEARNING_RATE
    return plan.describe(
        title="Settings of hierarchical distillation on digits, by validation",
        base=base,
        groups=[*map(_independent, rates), *(_hierarchical(*point) for point in points)],
        seeds=range(3),
        split="validation",
        reference=f"independent, rate {LEARNING_RATE}",
    )


def _independent(rate: float) -> tuple[str, dict[str, Any]]:
    return f"independent, rate {rate}", {
        "objective.name": "independent",
        "optimizer.learning_rate": rate,
    }


def _hierarchical(
    alpha: float,
    combine: str,
    temperature: float,
    ramp_epochs: float = 0.0,
    rate: float = LEARNING_RATE,
) -> tuple[str, dict[str, Any]]:
    name = f"{combine}, alpha {alpha}, T {temperature:.0f}"
    name += f", ramp {ramp_epochs:.0f}" if ramp_epochs else ""
    name += f", rate {rate}" if rate != LEARNING_RATE else ""
    return name, {
        "objective.name": "hierarchical",
        "objective.hierarchical.alpha": alpha,
        "objective.hierarchical.combine": combine,
        "objective.hierarchical.temperature": temperature,
        "objective.hierarchical.ramp_epochs": ramp_epochs,
        "optimizer.learning_rate": rate,
    }
