"""Groups that were measured before, elsewhere: the figures beside the page of a sweep."""

import pathlib
from typing import Any

from hne_tf.errors import InputError
from hne_tf.files import read_json
from hne_tf.sweeps.plan import Sweep

# Entries of a summary, see `report.summarise`, by name of the group.
Earlier = dict[str, list[dict[str, Any]]]


def measured(path: pathlib.Path, sweep: Sweep) -> Earlier:
    """The groups of a sweep whose runs have their figures in a file.

    A group counts if all of its runs are there and no others, known by the digests of
    their settings.

    Args:
      path: the figures beside a page, e.g. `results/objectives_cifar10.json`.
      sweep: that is to be run.

    Raises:
      InputError: for anything but the figures of a sweep on the same split, or figures
        that none of the groups has.
    """
    figures = read_json(path)
    try:
        split = figures["split"]
        entries = [(entry, {run["digest"] for run in entry["runs"]}) for entry in figures["groups"]]
    except (KeyError, TypeError):
        raise InputError(f"--figures must be the figures of a sweep, got {path}") from None
    if split != sweep.split:
        raise InputError(f"--figures must be of the {sweep.split} split, got the {split} split")
    found: Earlier = {}
    for name in sweep.groups:
        wanted = {run.digest for run in sweep.runs if run.group == name}
        # Networks with exits have an entry for each way in which they answer.
        of_group = [
            entry
            for entry, digests in entries
            if digests == wanted and entry["name"].startswith(name)
        ]
        if of_group:
            found[name] = of_group
    if not found:
        raise InputError(f"--figures must have a group of the sweep with all its seeds, got {path}")
    return found


def described(earlier: Earlier, path: pathlib.Path) -> str:
    """What a page says of them."""
    return f"Not run again, figures of {path}: {'; '.join(earlier)}."
