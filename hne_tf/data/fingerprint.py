"""What tells one data set from another: its pictures, classes and numbers of examples."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from hne_tf.data.sets.class_folders import Ignored, find_splits, list_classes
from hne_tf.errors import InputError

_TOLD_NAMES = 5


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What a run remembers of its data.

    Attributes:
      fingerprint: of the pictures of an image folder, or name and version of a data set.
      class_names: name of each label.
      examples: number of examples by split.
    """

    fingerprint: str
    class_names: tuple[str, ...]
    examples: Mapping[str, int]

    @classmethod
    def from_json(cls, fields: Any, source: str) -> "DataRecord":
        """Reads what `dataclasses.asdict` gave.

        Raises:
          InputError: for anything else.
        """
        try:
            return cls(
                str(fields["fingerprint"]), tuple(fields["class_names"]), dict(fields["examples"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{source} must describe the data of a run: {error!r}") from None

    def check_classes(self, now: "DataRecord") -> None:
        """Raises `InputError` unless `now` has the same classes in the same order."""
        if self.class_names != now.class_names:
            raise InputError(
                f"the data must have the {len(self.class_names)} classes of the run, "
                f"{_told(self.class_names)}, got {len(now.class_names)}, {_told(now.class_names)}"
            )

    def difference(self, now: "DataRecord") -> str | None:
        """How other data differ from these in a few words; None if they are the same."""
        if self.fingerprint == now.fingerprint:
            return None
        counts = [
            f"{split}: {self.examples.get(split)} there, {count} here"
            for split, count in now.examples.items()
            if self.examples.get(split) != count
        ]
        return "; ".join(counts) or "the same numbers of pictures, of other names or sizes"


def of_folder(root: pathlib.Path) -> str:
    """SHA-256 of the names and sizes of the pictures in a folder of splits.

    Where the folder lies does not count.

    Raises:
      InputError: if it cannot be read.
    """
    hashed = hashlib.sha256()
    for split, folder in sorted(find_splits(root, Ignored()).items()):
        for each in list_classes(folder, Ignored()):
            for path in each.paths:
                name = os.fsencode(os.path.relpath(path, folder))
                hashed.update(b"%s/%s\0%d\0" % (split.encode(), name, _bytes(path)))
    return hashed.hexdigest()


def _bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        # A link that leads nowhere.
        return -1


def _told(names: tuple[str, ...]) -> str:
    more = ", …" if len(names) > _TOLD_NAMES else ""
    return ", ".join(map(repr, names[:_TOLD_NAMES])) + more
