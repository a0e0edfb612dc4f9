"""One run of a sweep in a process of its own, which ends with the process that started it.

Training and evaluations share the process: loading TensorFlow three times would
take longer than a small run trains.
"""

import ctypes
import dataclasses
import json
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from hne_tf import hardware
from hne_tf.errors import InputError, InterruptedRunError, in_one_line, raised_in_graph
from hne_tf.training.machines import arithmetic
from hne_tf.training.workdir import Workdir

# Exit code of a run that was asked to stop, and goes on another time.
STOPPED = 3

_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker reads, as JSON, from its standard input.

    Attributes:
      parent: process that the worker ends with.
      workdir: folder of the run.
      config: settings of the run.
      splits: splits to evaluate when it is trained.
    """

    parent: int
    workdir: str
    config: dict[str, Any]
    splits: Sequence[str]


def main() -> int:
    """Trains and evaluates the run on standard input; returns the exit code."""
    job = Job(**json.load(sys.stdin))
    _end_with(job.parent)
    try:
        return _run(job)
    except (InputError, InterruptedRunError) as error:
        print(f"hne-sweep: {' '.join(str(error).split())}", file=sys.stderr)
        return STOPPED if isinstance(error, InterruptedRunError) else 1
    except Exception as error:
        traceback.print_exc()
        # The last line of the log is what the sweep tells.
        told = raised_in_graph(error) or in_one_line(error)
        print(f"hne-sweep: {told}", file=sys.stderr)
        return 1


def _run(job: Job) -> int:
    workdir = Workdir(pathlib.Path(job.workdir))
    hardware.prefer_onednn(arithmetic.onednn_of(workdir))
    # Imported here, so that the parent's end is noticed while TensorFlow loads.
    from hne_tf.files import write_json
    from hne_tf.training import backends, trained
    from hne_tf.training.config import from_json
    from hne_tf.training.loop import train

    config = from_json(job.config)
    backends.current().prepare(config)
    train(config, workdir)
    # The folder remembers where the data lay when the run began.
    run = trained.restore(workdir, config.data.data_dir)
    for split in job.splits:
        write_json(workdir.evaluation_path(split), run.evaluate(split))
    return 0


def _end_with(parent: int) -> None:
    """Has this process asked to stop when its parent is gone, even by SIGKILL.

    Only Linux can; elsewhere a run that is left alone goes on to its end, and
    the lock that it inherited keeps another sweep from its folder.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main())
