"""Versions of a model appear complete or not at all, and never onto an existing one."""

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from hne_tf.errors import InputError
from hne_tf.files import write_json


def next_version(base: pathlib.Path) -> int:
    """One more than the newest version in `base`, or 1."""
    if not base.is_dir():
        return 1
    return 1 + max((int(entry.name) for entry in base.iterdir() if entry.name.isdigit()), default=0)


@contextlib.contextmanager
def new_version(base: pathlib.Path, version: int) -> Iterator[pathlib.Path]:
    """Gives a folder to build a version in; it is renamed to `<base>/<version>` on success.

    Raises:
      InputError: if the version is not a positive number or exists.
    """
    target = base / str(version)
    if version < 1:
        raise InputError(f"--version must be a positive number, got {version}")
    _check_absent(target)
    if base.exists() and not base.is_dir():
        raise InputError(f"--model_base_path must be a folder, got the file {base}")
    base.mkdir(parents=True, exist_ok=True)
    # TF Serving passes over names that are not numbers.
    temporary = base / f"unpublished-{version}-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        # A rename onto an empty folder would succeed.
        _check_absent(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def revise(folder: pathlib.Path, changed: Mapping[str, Any]) -> pathlib.Path:
    """Publishes a copy of a version with other JSON in some of its files, as the next version.

    Args:
      folder: the version, which stays as it is.
      changed: JSON values by path inside the version.

    Returns:
      The folder of the new version.

    Raises:
      InputError: if the folder's name is not that of a version.
    """
    check_version(folder)
    version = next_version(folder.parent)
    with new_version(folder.parent, version) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        for name, value in changed.items():
            write_json(copy / name, value)
    return folder.parent / str(version)


def check_version(folder: pathlib.Path) -> None:
    """Raises `InputError` unless the folder's name is that of a version."""
    if not folder.name.isdigit():
        raise InputError(
            f"a published version must be a folder whose name is a number, got {str(folder)!r}"
        )


def _check_absent(target: pathlib.Path) -> None:
    if target.exists():
        raise InputError(f"a version is never overwritten, and {target} exists")
