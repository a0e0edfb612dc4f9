"""The versions of a model: folders named by integers, in the folder of the model.

A version appears complete or not at all, and never onto an existing one.
"""

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator, Mapping

from hne_tf.errors import InputError
from hne_tf.files import write_text

# What lies in a version's folder.
MANIFEST = "assets.extra/hne_manifest.json"
WARM_UP_REQUESTS = "assets.extra/tf_serving_warmup_requests"
# The same model for LiteRT, where it was asked for. TF Serving does not look at it.
LITERT = "assets.extra/model.tflite"

# TF Serving refuses to load a version with more.
MOST_WARM_UP_REQUESTS = 1000
# TF Serving reads folder names as 64-bit integers and skips what does not fit.
_LARGEST = 2**63 - 1


def version_paths(base_path: str | pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of the versions published below `base_path`, the largest first.

    A version is a folder whose name is an integer; others, such as one that is
    being published under a temporary name, are ignored.

    Raises:
      InputError: if `base_path` is no folder.
    """
    base = pathlib.Path(base_path)
    if not base.is_dir():
        raise InputError(f"model base path must be a folder, got {str(base_path)!r}")
    found = (entry for entry in base.iterdir() if _is_number(entry.name) and entry.is_dir())
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def latest_version_path(base_path: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder of the largest version published below `base_path`.

    Raises:
      InputError: if there is no such folder.
    """
    found = version_paths(base_path)
    if not found:
        raise InputError(
            "model base path must hold a folder per version, named by an integer, "
            f"got none in {str(base_path)!r}"
        )
    return found[0]


def version_folder(path: str | pathlib.Path) -> pathlib.Path:
    """Returns a version's folder: `path` if it holds a manifest, else the newest below it.

    Raises:
      InputError: if there is no such folder.
    """
    path = pathlib.Path(path)
    if (path / MANIFEST).is_file():
        return path
    if found := version_paths(path):
        return found[0]
    raise InputError(
        f"a model must be a version's folder with {MANIFEST} or hold such folders, "
        f"got {str(path)!r}"
    )


def next_version(base: pathlib.Path) -> int:
    """One more than the newest version in `base`, or 1."""
    if not base.is_dir():
        return 1
    numbers = (int(entry.name) for entry in base.iterdir() if _is_number(entry.name))
    return 1 + max(numbers, default=0)


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


def revise(folder: pathlib.Path, changed: Mapping[str, str]) -> pathlib.Path:
    """Publishes a copy of a version with another text in some of its files, as the next version.

    Args:
      folder: the version, which stays as it is.
      changed: texts by path inside the version.

    Returns:
      The folder of the new version.

    Raises:
      InputError: if the folder's name is not that of a version.
    """
    check_version(folder)
    version = next_version(folder.parent)
    with new_version(folder.parent, version) as copy:
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        for name, text in changed.items():
            write_text(copy / name, text)
    return folder.parent / str(version)


def check_version(folder: pathlib.Path) -> None:
    """Raises `InputError` unless the folder's name is that of a version."""
    if not _is_number(folder.name):
        raise InputError(
            f"a published version must be a folder whose name is a number, got {str(folder)!r}"
        )


def _check_absent(target: pathlib.Path) -> None:
    if target.exists():
        raise InputError(f"a version is never overwritten, and {target} exists")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) <= _LARGEST
