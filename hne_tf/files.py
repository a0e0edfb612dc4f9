"""Files that appear complete or not at all."""

import contextlib
import fcntl
import json
import pathlib
import time
import uuid
from collections.abc import Iterator
from typing import IO, Any

from hne_tf.errors import InputError


def read_json(path: pathlib.Path) -> Any:
    """Reads JSON.

    Raises:
      InputError: if there is none.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} must be readable JSON: {error}") from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON, complete or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary name beside `path`, renamed onto it when the block succeeds."""
    # By a name that no other thread, process or machine has.
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: pathlib.Path, patience_s: float = 0.0) -> Iterator[int | None]:
    """Holds a lock file while the block runs; a process that dies lets go of it.

    Processes that inherit the descriptor hold the lock with this one.

    Args:
      path: the file, made if it is missing.
      patience_s: how long to wait for another holder.

    Yields:
      The descriptor, or None where another process holds the lock.
    """
    deadline = time.monotonic() + patience_s
    with path.open("w") as lock:
        while not _try_lock(lock):
            if time.monotonic() >= deadline:
                yield None
                return
            time.sleep(0.1)
        yield lock.fileno()


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
