"""The machines of a run, as `TF_CONFIG` describes them."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Mapping
from typing import Any

from hne_tf.errors import InputError

# Types of tasks that train.
_TASKS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers that train together, one process each.

    Attributes:
      workers: how many there are.
      index: the number of this one. Number 0 is the chief, the only one that
        writes: the task of type `chief`, or the first worker if there is none.
    """

    workers: int = 1
    index: int = 0

    @property
    def is_chief(self) -> bool:
        return self.index == 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Cluster":
        """The cluster in `TF_CONFIG`, or this process alone where it is not set.

            {"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]},
             "task": {"type": "worker", "index": 0}}

        Raises:
          InputError: for anything that is not of this form, and for tasks of
            other types than `chief` and `worker`.
        """
        text = environment.get("TF_CONFIG", "").strip()
        if not text:
            return cls()
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"TF_CONFIG must be JSON, got {text!r}: {error}") from None
        if settings == {}:
            return cls()
        if not isinstance(settings, dict) or not settings.keys() >= {"cluster", "task"}:
            raise InputError(f"TF_CONFIG must be an object with cluster and task, got {text}")
        tasks = _addresses(settings["cluster"])
        kind, index = _task(settings["task"], tasks)
        first = len(tasks.get("chief", ())) if kind == "worker" else 0
        return cls(workers=sum(map(len, tasks.values())), index=first + index)


def check_divides(batch_size: int, parts: int, what: str) -> None:
    """Raises `InputError` unless so many workers or devices get the same part of a batch."""
    if batch_size % parts:
        raise InputError(f"training.batch_size must divide by the {parts} {what}, got {batch_size}")


def _addresses(cluster: Any) -> dict[str, list[str]]:
    """Addresses of the tasks of each type."""
    if not isinstance(cluster, dict) or not cluster or not cluster.keys() <= set(_TASKS):
        raise InputError(
            f"cluster in TF_CONFIG must hold chief, worker or both, got {json.dumps(cluster)}"
        )
    for kind, addresses in cluster.items():
        if not isinstance(addresses, list) or not addresses or not all(map(_is_address, addresses)):
            raise InputError(
                f"cluster.{kind} in TF_CONFIG must be a list of host:port, "
                f"got {json.dumps(addresses)}"
            )
    if len(cluster.get("chief", ())) > 1:
        raise InputError(
            f"cluster.chief in TF_CONFIG must be one address, got {json.dumps(cluster['chief'])}"
        )
    every = list(itertools.chain(*cluster.values()))
    if len(set(every)) < len(every):
        raise InputError(f"addresses in TF_CONFIG must differ, got {', '.join(every)}")
    return cluster


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r".+:[0-9]+", value) is not None


def _task(task: Any, tasks: dict[str, list[str]]) -> tuple[str, int]:
    """Type and index of this process's task."""
    if not isinstance(task, dict) or not task.keys() >= {"type", "index"}:
        raise InputError(f"task in TF_CONFIG must have type and index, got {json.dumps(task)}")
    kind, index = task["type"], str(task["index"])
    if kind not in tuple(tasks):
        raise InputError(
            f"task.type in TF_CONFIG must be {' or '.join(tasks)}, got {json.dumps(kind)}"
        )
    last = len(tasks[kind]) - 1
    if not re.fullmatch("[0-9]{1,9}", index) or int(index) > last:
        raise InputError(
            f"task.index in TF_CONFIG must lie in 0 to {last}, got {json.dumps(task['index'])}"
        )
    return kind, int(index)
