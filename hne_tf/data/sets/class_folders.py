"""What lies in a folder of splits, each with a folder per class."""

import collections
import os
import pathlib
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from hne_tf.data.pixels import SUFFIXES
from hne_tf.errors import InputError

# Names of the folder of each split, in any case.
SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}

# Besides what begins with a dot: what macOS leaves in archives.
_HIDDEN_NAME = "__MACOSX"
_TOLD_REASONS = 10
# Control characters, line breaks and what is no text: they would garble every table of classes.
_UNPRINTABLE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}


class Ignored:
    """What is not read, by the reason."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, path: str) -> None:
        """Notes a file or folder."""
        self._counts[reason] += 1
        self._first.setdefault(reason, path)

    def __str__(self) -> str:
        """The commonest reasons in one line, each with its number and first path."""
        return "; ".join(
            f"{count:,} {reason}, such as {self._first[reason]!r}"
            for reason, count in self._counts.most_common(_TOLD_REASONS)
        )


class ClassFolder(NamedTuple):
    """A class and the paths of its picture files, sorted."""

    name: str
    paths: list[str]


def find_splits(root: pathlib.Path, ignored: Ignored) -> dict[str, pathlib.Path]:
    """The folders of the splits that are there.

    Args:
      root: the folder that holds them.
      ignored: gets what is no folder of a split.

    Raises:
      InputError: if the folder cannot be read or a split has two folders.
    """
    found: dict[str, pathlib.Path] = {}
    splits = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    for entry in _entries(root, ignored):
        split = splits.get(entry.name.lower())
        if split is None or not _is_folder(entry):
            ignored.add("beside the folders of the splits", entry.path)
        elif split in found:
            raise InputError(
                f"a split must have one folder, got {str(found[split])!r} and {entry.path!r} "
                f"for {split}"
            )
        else:
            found[split] = pathlib.Path(entry.path)
    return found


def list_classes(folder: pathlib.Path, ignored: Ignored) -> list[ClassFolder]:
    """The classes in the folder of a split, sorted, with the pictures in them.

    Pictures in folders inside that of a class belong to the class.

    Args:
      folder: of the split.
      ignored: gets what is no picture.

    Raises:
      InputError: if a folder cannot be read, or a name cannot be that of a class.
    """
    classes = []
    for entry in _entries(folder, ignored):
        if not _is_folder(entry):
            ignored.add("beside the folders of the classes", entry.path)
            continue
        if any(unicodedata.category(letter) in _UNPRINTABLE_CATEGORIES for letter in entry.name):
            raise InputError(f"the name of a class must be printable text, got {entry.path!r}")
        classes.append(ClassFolder(entry.name, sorted(_pictures(entry.path, ignored))))
    return classes


def _pictures(class_folder: str, ignored: Ignored) -> Iterator[str]:
    """Paths of the pictures in a folder and in those inside it."""
    pending = [class_folder]
    while pending:
        for entry in _entries(pending.pop(), ignored):
            if _is_folder(entry):
                # It may lead to the pictures of other classes, or in a circle.
                if entry.is_symlink():
                    ignored.add("links to folders", entry.path)
                else:
                    pending.append(entry.path)
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            # A link that leads nowhere counts: it is found when it is read, like a damaged file.
            if suffix in SUFFIXES:
                yield entry.path
            else:
                ignored.add(f"with suffix {suffix!r}" if suffix else "without suffix", entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # Links in a circle.
    except OSError:
        return False


def _entries(folder: str | pathlib.Path, ignored: Ignored) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted, but for what is hidden.

    Raises:
      InputError: if the folder cannot be read.
    """
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    # A path that holds a null character is a ValueError.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"data.data_dir must be a readable folder, got {str(folder)!r}: {reason}"
        ) from None
    shown = []
    for entry in entries:
        if entry.name.startswith(".") or entry.name == _HIDDEN_NAME:
            ignored.add("hidden", entry.path)
        else:
            shown.append(entry)
    return shown
