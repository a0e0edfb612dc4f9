"""What every binary shares: flags in, one line per error, an exit code out."""

import contextlib
import os
import pathlib
import sys
import typing
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from hne_tf import hardware
from hne_tf.errors import InputError, InterruptedRunError, raised_in_graph

if typing.TYPE_CHECKING:
    from hne_tf.training.trained import TrainedRun

# Kubeflow takes codes below 128 for failures that would come again, 128 and above
# for those to restart from; a process killed by SIGUSR1, which this would be, is
# the one that it leaves to programs.
EXIT_INTERRUPTED = 138

# Whether a command with these flags is faster with oneDNN; None if TensorFlow is to choose.
OneDNN = Callable[[flags.FlagValues], bool | None]

_ENVIRONMENT = f"""
Environment:
  {hardware.ONEDNN_VARIABLE}: 1 or 0 has TensorFlow compute with oneDNN or without.
    Unless it is set, commands that train or evaluate in batches compute with oneDNN,
    and a run that is resumed as it began. Commands that serve or measure latency take
    what is faster for the model, where that is known, or what TensorFlow chooses.
"""


def run(
    name: str,
    define_flags: Callable[[flags.FlagValues, list[str]], None],
    main: Callable[[flags.FlagValues, list[str]], None],
    argv: Sequence[str] | None = None,
    onednn: OneDNN | None = None,
) -> int:
    """Parses flags, calls `main`, and reports bad input in one line.

    Flags live in a fresh `FlagValues`, so that a process (a test) can run
    several binaries. `main` imports the library itself: flags are checked
    before TensorFlow is loaded.

    Args:
      name: command name for messages, e.g. `"hne-train"`.
      define_flags: adds the binary's flags; the arguments come along for
        config files, whose overrides become flags.
      main: called with the parsed flags and the remaining arguments.
      argv: arguments without the program name; `sys.argv[1:]` by default.
      onednn: for a command that computes with TensorFlow, which kernels are faster:
        `in_batches`, `in_calls` or a function of its own.

    Returns:
      The exit code: 0, 1 for bad input found by the library, 2 for bad flags,
      138 for a run that the same command continues.
    """
    # TensorFlow greets CPU machines with CUDA complaints.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Show the flags and exit.", flag_values=values)
    arguments = list(sys.argv[1:] if argv is None else argv)
    define_flags(values, arguments)
    # Before parsing, which would ask for the required flags.
    if "--help" in arguments:
        print(f"{sys.modules[main.__module__].__doc__}\nFlags:\n{values.get_help()}")
        if onednn:
            print(_ENVIRONMENT)
        return 0
    try:
        positional = values([name, *arguments])[1:]
    except flags.Error as error:
        return _fail(name, error, 2)
    except AttributeError as error:
        # What ml_collections raises for an override of an unknown field.
        return _fail(name, f"the config must have the field that is set, got {error}", 2)
    try:
        if onednn:
            hardware.prefer_onednn(onednn(values))
        main(values, positional)
    except InputError as error:
        return _fail(name, error, 1)
    except InterruptedRunError as error:
        return _fail(name, error, EXIT_INTERRUPTED)
    except Exception as error:
        refused = raised_in_graph(error)
        if refused is None:
            raise
        return _fail(name, refused, 1)
    return 0


def in_batches(values: flags.FlagValues) -> bool:
    """A command that trains or evaluates in batches is faster with oneDNN."""
    del values
    return True


def in_calls(values: flags.FlagValues) -> None:
    """A command that serves or measures latency computes as TensorFlow does by itself."""
    del values


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Keeps what TensorFlow's native code writes while it loads off standard error.

    Those lines (oneDNN, CUDA) are written before its logging can be configured.
    Exceptions pass as usual.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def reject_positional(arguments: Sequence[str]) -> None:
    """Raises `InputError` if a binary that takes only flags got other arguments."""
    if arguments:
        raise InputError(f"only flags are taken here, got {' '.join(arguments)!r}")


def define_run_flags(values: flags.FlagValues) -> None:
    """Adds the flags by which a binary takes a trained run; `restore_run` reads them."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    flags.DEFINE_string(
        "pretrained",
        None,
        "Instead of a workdir: a model that comes with the package, e.g. cifar10_cpu.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir", None, "Where the data set lies, if it has moved.", flag_values=values
    )


def restore_run(values: flags.FlagValues) -> "TrainedRun":
    """The run that the flags name.

    Raises:
      InputError: unless just one of `--workdir` and `--pretrained` is given, or
        if it cannot be restored.
    """
    if (values.workdir is None) == (values.pretrained is None):
        raise InputError(
            "one of --workdir and --pretrained must be given, got "
            f"--workdir={values.workdir} and --pretrained={values.pretrained}"
        )
    with quiet_import():
        from hne_tf import pretrained
        from hne_tf.training import trained
        from hne_tf.training.workdir import Workdir

    if values.pretrained is not None:
        return pretrained.restore(values.pretrained, values.data_dir)
    return trained.restore(Workdir(pathlib.Path(values.workdir)), values.data_dir)


def command(name: str, values: flags.FlagValues) -> list[str]:
    """The command that these flags were given by, for the pages of results."""
    given = [values[flag] for flag in values if not values[flag].using_default_value]
    return [name, *map(_serialized, given)]


def _serialized(flag: flags.Flag) -> str:
    # A tuple of a config would become a flag for each of its entries.
    if isinstance(flag, flags.MultiFlag):
        return f"--{flag.name}={tuple(flag.value)}"
    return flag.serialize()


def integers(flag: str, texts: Sequence[str]) -> list[int]:
    """The values of a list flag as integers; raises `InputError` for anything else."""
    try:
        return [int(text) for text in texts]
    except ValueError:
        raise InputError(f"--{flag} takes integers, got {','.join(texts)!r}") from None


def _fail(name: str, error: Exception | str, code: int) -> int:
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
