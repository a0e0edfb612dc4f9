"""What a sweep consists of: groups of settings times seeds. Imports no TensorFlow."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from hne_tf.errors import InputError
from hne_tf.training.config import check, copy_of, digest

# Splits that a table can be judged on; nobody chooses or reports by training data.
SPLITS = ("validation", "test")

# Overrides of a group by dotted name, `{"objective.name": "independent"}`.
Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
      group: name of its group.
      seed: its seed.
      config: its settings.
    """

    group: str
    seed: int
    config: ml_collections.FrozenConfigDict = dataclasses.field(repr=False)

    @functools.cached_property
    def digest(self) -> str:
        """What its settings are known by, in whichever sweep."""
        return digest(self.config)

    def __str__(self) -> str:
        return f"{self.group}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Groups of settings times seeds.

    Attributes:
      title: heading of the table.
      split: the split that the table is judged on, one of `SPLITS`.
      base: the settings that groups override.
      groups: overrides by group, in the order of the table.
      seeds: seeds of each group.
      reference: group that the others are held against; None for none.
      equal_computation: whether groups are compared within the same budgets of
        multiply-adds.
      runs: all groups of the first seed, then of the second and so on, so that
        a part of a sweep already compares its groups.
    """

    title: str
    split: str
    base: ml_collections.FrozenConfigDict = dataclasses.field(repr=False)
    groups: Mapping[str, Overrides]
    seeds: tuple[int, ...]
    reference: str | None
    equal_computation: bool
    runs: tuple[Run, ...] = dataclasses.field(repr=False)


def describe(
    *,
    title: str,
    base: ml_collections.ConfigDict,
    groups: Sequence[tuple[str, Overrides]],
    seeds: Iterable[int],
    split: str,
    reference: str | None = None,
    equal_computation: bool = False,
) -> ml_collections.ConfigDict:
    """The config of a sweep, as `get_config` of a config file returns it.

    Args:
      title: heading of the table.
      base: settings of a run, see `hne_tf.training.config.default()`; deterministic, so
        that a run that is made again gives the same figures.
      groups: a name and overrides of `base` each.
      seeds: seeds of each group.
      split: `"validation"` where settings are chosen, `"test"` for results.
      reference: group that the others are held against on the page.
      equal_computation: whether the page compares groups within the same
        budgets of multiply-adds.
    """
    return ml_collections.ConfigDict(
        {
            "title": title,
            "split": split,
            "seeds": tuple(seeds),
            "reference": reference or "",
            "equal_computation": equal_computation,
            "base": base,
            "groups": tuple((name, dict(overrides)) for name, overrides in groups),
        }
    )


def parse(config: ml_collections.ConfigDict) -> Sweep:
    """The sweep that a config describes.

    Raises:
      InputError: for a config that is no sweep or breaks a rule.
    """
    fields = ("title", "split", "seeds", "reference", "equal_computation", "base", "groups")
    if set(config) != set(fields):
        raise InputError(
            f"a sweep's config has the fields {', '.join(fields)} (hne_tf.sweeps.plan.describe), "
            f"got {', '.join(sorted(config))}"
        )
    if config.split not in SPLITS:
        raise InputError(f"split of a sweep must be one of {', '.join(SPLITS)}, got {config.split}")
    seeds = _check_seeds(config.seeds)
    if not config.groups:
        raise InputError("a sweep must have a group or more, got none")
    _check_unique("names of groups", [name for name, _ in config.groups])
    groups = dict(config.groups)
    if config.reference and config.reference not in groups:
        raise InputError(
            f"reference must be one of the groups {', '.join(groups)}, got {config.reference!r}"
        )
    runs = tuple(
        Run(name, seed, _settings(config.base, name, overrides, seed))
        for seed in seeds
        for name, overrides in groups.items()
    )
    _check_different(runs)
    base = ml_collections.FrozenConfigDict(config.base)
    return Sweep(
        config.title,
        config.split,
        base,
        groups,
        seeds,
        config.reference or None,
        config.equal_computation,
        runs,
    )


def _check_seeds(seeds: Sequence[Any]) -> tuple[int, ...]:
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InputError(f"seeds must be one integer of 0 or more, or several, got {seeds}")
    _check_unique("seeds", seeds)
    return tuple(seeds)


def _check_unique(what: str, values: Sequence[Any]) -> None:
    twice = [str(value) for value, count in collections.Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"{what} must differ, got {', '.join(twice)} more than once")


def _settings(
    base: ml_collections.ConfigDict, group: str, overrides: Overrides, seed: int
) -> ml_collections.FrozenConfigDict:
    """The settings of one run."""
    if "seed" in overrides:
        raise InputError(f"group {group!r} must leave the seed to the sweep's seeds, got an own")
    # A copy, because groups must not see each other's overrides.
    config = copy_of(base)
    config.lock()
    for field, value in overrides.items():
        try:
            config.update_from_flattened_dict({field: value})
        except KeyError:
            raise InputError(
                f"group {group!r} must override fields of the settings, got {field!r}"
            ) from None
        except (TypeError, ValueError):
            raise InputError(
                f"group {group!r} must give {field} a value of its type, got {value!r}"
            ) from None
    if not config.training.deterministic:
        raise InputError(
            "training.deterministic must be True in a sweep, or a run that is made again would "
            f"change its table, got False in group {group!r}"
        )
    config.seed = seed
    check(config)
    return ml_collections.FrozenConfigDict(config)


def _check_different(runs: Sequence[Run]) -> None:
    """Raises InputError if two groups are the same settings under two names."""
    groups: dict[str, str] = {}
    for run in runs:
        other = groups.setdefault(run.digest, run.group)
        if other != run.group:
            raise InputError(f"groups must differ in their settings, got {other!r} = {run.group!r}")
