"""What every binary shares: flags in, one line per error, an exit code out."""

import contextlib
import errno
import os
import pathlib
import sys
import typing
import warnings
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
# A chain of certificates has some kilobytes, and a device has no end.
_MOST_PEM_BYTES = 2**20
# As of a process that SIGINT has killed.
EXIT_KEYBOARD = 130

# Errors of files and folders that are the user's, not a defect's.
_UNUSABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT),
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
}

# Whether a command with these flags is faster with oneDNN; None if TensorFlow is to choose.
# Or `WITHOUT_TENSORFLOW`, if they have it compute nothing.
OneDNN = Callable[[flags.FlagValues], bool | str | None]
WITHOUT_TENSORFLOW = "without TensorFlow"

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
    main: Callable[[flags.FlagValues, list[str]], int | None],
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
      main: called with the parsed flags and the remaining arguments; may return an
        exit code.
      argv: arguments without the program name; `sys.argv[1:]` by default.
      onednn: for a command that computes with TensorFlow, which kernels are faster:
        `in_batches`, `in_calls` or a function of its own.

    Returns:
      The exit code: 0, 1 for bad input found by the library and for files that cannot
      be written, 2 for bad flags, 130 after Ctrl-C, 138 for a run that the same command
      continues; or what `main` returns.
    """
    # TensorFlow greets CPU machines with CUDA complaints.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Pillow warns of pictures that `data.pixels` refuses, or reads all the same.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    # joblib warns if a full disk leaves it no semaphores, which no command uses.
    warnings.filterwarnings("ignore", module=r"joblib\.")
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Show the flags and exit.", flag_values=values)
    arguments = _last_overrides(sys.argv[1:] if argv is None else argv)
    try:
        with _working_folder_on_path():
            code = _run(name, values, define_flags, main, arguments, onednn)
        # A full disk is told by this, rather than while Python ends.
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _fail(name, "interrupted", EXIT_KEYBOARD)
    except InputError as error:
        return _fail(name, error, 1)
    except InterruptedRunError as error:
        return _fail(name, error, EXIT_INTERRUPTED)
    except Exception as error:
        told = raised_in_graph(error) or _unusable_file(error)
        if told is None:
            raise
        return _fail(name, told, 1)


def _run(
    name: str,
    values: flags.FlagValues,
    define_flags: Callable[[flags.FlagValues, list[str]], None],
    main: Callable[[flags.FlagValues, list[str]], int | None],
    arguments: list[str],
    onednn: OneDNN | None,
) -> int:
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
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        # What ml_collections raises for an override of an unknown section or field.
        found = error.args[0] if error.args else error
        return _fail(name, f"the config must have the field that is set, got {found}", 2)
    if onednn:
        hardware.keep_freed_memory()
        faster = onednn(values)
        if faster != WITHOUT_TENSORFLOW:
            hardware.prefer_onednn(faster)
            with quiet_import():
                hardware.load_keras()
    return main(values, positional) or 0


def _last_overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments without overrides of a config that are given again.

    Or those of a tuple would add up.
    """
    kept: list[str] = []
    given: set[str] = set()
    for index in reversed(range(len(arguments))):
        name, equals, _ = arguments[index].partition("=")
        if name.lstrip("-").startswith("config.") and name.startswith("-"):
            if name in given:
                # Its value may be an argument of its own.
                if not equals and kept and not kept[-1].startswith("-"):
                    kept.pop()
                continue
            given.add(name)
        kept.append(arguments[index])
    return kept[::-1]


def _unusable_file(error: Exception) -> str | None:
    """What a file or folder of the user's does not allow, if that is the error."""
    rule = "files and folders must be readable and writable"
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        where = f"{error.filename!r}: " if error.filename is not None else ""
        return f"{rule}, got {where}{error.strerror}"
    # TensorFlow's and HDF5's own, by their words.
    if type(error).__module__.startswith("tensorflow") or isinstance(error, OSError):
        text = " ".join(str(error).split())
        if any(os.strerror(number) in text for number in _UNUSABLE):
            return f"{rule}, got {text[:200]}"
    return None


@contextlib.contextmanager
def _working_folder_on_path() -> Iterator[None]:
    """Lets config files import others from the working folder, as `python -m` does.

    It comes last, so that nothing there hides an installed package.
    """
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


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


def define_path(values: flags.FlagValues, name: str, default: str | None, text: str) -> None:
    """Adds a flag for a path; a `~` at its beginning is the user's home."""
    serializer = flags.ArgumentSerializer()
    flags.DEFINE(_PathParser(), name, default, text, values, serializer)


def define_paths(values: flags.FlagValues, name: str, default: list[str] | None, text: str) -> None:
    """Adds a flag for paths with commas between them."""
    flags.DEFINE(_PathsParser(), name, default, text, values, flags.CsvListSerializer(","))


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


class _PathsParser(flags.ListParser):
    def parse(self, argument: str | list[str]) -> list[str]:
        return [os.path.expanduser(path) for path in super().parse(argument)]


def define_uncertainty(values: flags.FlagValues) -> None:
    """Adds flags on what a manifest says of how sure answers are."""
    # NumPy takes a while, and other commands have no such flags.
    from hne_tf.exported.uncertainty import stopping

    flags.DEFINE_enum(
        "stopping_rule",
        "confidence",
        list(stopping.RULES),
        "What the manifest's thresholds of early stopping are of.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "calibrate",
        False,
        "Divides the logits of each size by a temperature fitted on the validation split.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "coverage",
        0.9,
        "Probability that a prediction set holds the label, for the manifest's limits.",
        flag_values=values,
    )


def define_run_flags(values: flags.FlagValues) -> None:
    """Adds the flags by which a binary takes a trained run; `restore_run` reads them."""
    define_path(values, "workdir", None, "Folder of the run.")
    flags.DEFINE_string(
        "pretrained",
        None,
        "Instead of a workdir: a model that comes with the package, e.g. cifar10_cpu.",
        flag_values=values,
    )
    define_path(values, "data_dir", None, "Where the data set lies, if it has moved.")


def define_average(values: flags.FlagValues) -> None:
    """Adds the flag by which a run answers in another way; `set_average` reads it."""
    flags.DEFINE_string(
        "average",
        None,
        "How leaves answer together, if not as the run was trained, e.g. cached_logits, which "
        "keeps the surest answer so far.",
        flag_values=values,
    )


def set_average(run: "TrainedRun", values: flags.FlagValues) -> None:
    """Makes the run's model answer as `--average` says; raises `InputError` if it cannot."""
    if values.average is not None:
        run.model.answer_by(values.average)


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


def pem(flag: str, path: str) -> bytes:
    """The content of the PEM file that a flag names; raises `InputError` for another file."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MOST_PEM_BYTES)
    except OSError as error:
        raise InputError(
            f"--{flag} must be a readable file, got {path!r}: {error.strerror}"
        ) from None
    if b"-----BEGIN " not in content:
        raise InputError(f"--{flag} must be a PEM file, got {path!r}")
    return content


def _fail(name: str, error: Exception | str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        # Or Python would say it again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    return code
