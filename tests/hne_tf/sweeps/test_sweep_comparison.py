import math

import pytest

from hne_tf.sweeps import comparison

POINTS = [(10, 0.5), (20, 0.6), (80, 0.7)]


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


@pytest.mark.parametrize(
    ("budget", "accuracy"), [(10, 0.5), (19, 0.5), (20, 0.6), (79.9, 0.6), (80, 0.7), (1e9, 0.7)]
)
def test_a_budget_buys_the_largest_answer_that_it_covers(budget, accuracy):
    assert comparison.within(POINTS, budget) == accuracy


def test_no_answer_is_as_cheap_as_that():
    with pytest.raises(ValueError, match="empty"):
        comparison.within(POINTS, 9)


def test_a_larger_answer_counts_even_if_it_is_worse():
    assert comparison.within([(10, 0.9), (20, 0.6)], 30) == 0.6


@pytest.mark.parametrize(("low", "high"), [(10, 160), (15, 70), (10, 10), (20, 80)])
def test_the_area_is_the_mean_over_budgets_evenly_spaced_on_a_log_scale(low, high):
    count = 20_000
    budgets = [low * (high / low) ** ((i + 0.5) / count) for i in range(count)]
    mean = math.fsum(comparison.within(POINTS, budget) for budget in budgets) / count
    assert comparison.area(POINTS, low, high) == pytest.approx(mean, abs=1e-4)


def group(name, costs, *accuracies, **figures):
    """A group of the summary whose runs have these accuracies at each cost."""
    sizes = [str(2**i) for i in range(len(costs))]
    runs = [{"accuracy": dict(zip(sizes, row, strict=True))} for row in accuracies]
    mean = {
        "accuracy": {
            size: sum(run["accuracy"][size] for run in runs) / max(1, len(runs)) for size in sizes
        },
        **dict.fromkeys(("mean_leaf_accuracy", "gain", "disagreement"), 0.2),
        **figures,
    }
    deviation = {
        "accuracy": dict.fromkeys(sizes, 0.03),
        **dict.fromkeys(("mean_leaf_accuracy", "gain", "disagreement"), 0.01),
    }
    return {
        "name": name,
        "multiply_adds": dict(zip(sizes, costs, strict=True)),
        "runs": runs,
        "mean": mean if runs else None,
        "deviation": deviation if len(runs) > 1 else None,
    }


def test_groups_are_held_against_the_reference():
    base = group("base", (1, 2), (0.5, 0.6), (0.5, 0.6))
    better = group("better", (1, 2), (0.54, 0.59), (0.54, 0.59), disagreement=0.1)
    better["deviation"]["accuracy"] = {"1": 0.04, "2": 0.04}
    incomplete = group("incomplete", (1, 2), (0.9, 0.9))
    lines = comparison.against_reference(
        {"groups": [base, better, incomplete]}, "base"
    ).splitlines()
    assert cells(lines[0]) == ["group", "1", "2", "mean leaf", "gain", "disagreement"]
    # Deviations of 3 and 4 points: 3.5 for one run, exceeded by 4 but not by 1.
    expected = ["better", "**+4.0 ± 3.5**", "-1.0 ± 3.5", "+0.0 ± 1.0", "+0.0 ± 1.0"]
    assert cells(lines[2]) == [*expected, "**-10.0 ± 1.0**"]
    assert not any("incomplete" in line for line in lines)
    assert comparison.against_reference({"groups": [base, incomplete]}, "base") == ""


def test_groups_are_compared_within_the_same_budgets():
    summary = {
        "groups": [
            group("tree", (2_000_000, 32_000_000), (0.5, 0.6), (0.52, 0.6)),
            group("exits", (1_000_000, 4_000_000), (0.3, 0.7)),
            group("failed", (1, 2)),
        ]
    }
    lines = comparison.at_equal_computation(summary).splitlines()
    budgets = ["2.0 M", "4.0 M", "8.0 M", "16.0 M", "32.0 M"]
    assert cells(lines[0]) == ["group", "first answer (M)", *budgets, "area"]
    small, full, over_all = "51.0 ± 1.4", "60.0 ± 0.0", "51.0 ± 1.4"
    assert cells(lines[2]) == ["tree", "2.0", *[small] * 4, full, over_all]
    # A quarter of the range at 30%, the rest at 70%.
    assert cells(lines[3]) == ["exits", "1.0", "30.0", *["70.0"] * 4, "60.0"]
    assert len(lines) == 6
