"""Measured tables, with the command, the date and the hardware beside them."""

import datetime
import importlib.metadata
import pathlib
import shlex
from collections.abc import Sequence

from hne_tf import hardware
from hne_tf.files import write_text


def write_page(path: pathlib.Path, title: str, command: Sequence[str], body: str) -> None:
    """Writes a Markdown page of results.

    Args:
      path: the page; folders on the way are made.
      title: its heading.
      command: the program and arguments that measured what the page shows.
      body: Markdown.
    """
    machine = hardware.describe()
    accelerators = ", ".join(machine["accelerators"]) or "no accelerator"
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}" for package in ("tensorflow", "keras")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(
        path,
        f"# {title}\n\n"
        f"```bash\n{shlex.join(command)}\n```\n\n"
        f"{datetime.date.today().isoformat()}; {machine['processor']}, {machine['cores']} cores, "
        f"{accelerators}; {machine['system']}; {versions}.\n\n"
        f"{body.strip()}\n",
    )
