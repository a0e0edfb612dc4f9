"""The flag that names a config file, and the overrides of its fields."""

import importlib.util
import os
import traceback
from collections.abc import Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from hne_tf.errors import InputError


def define(values: flags.FlagValues, argv: Sequence[str], text: str) -> None:
    """Adds `--config` and, for each `--config.<field>` among the arguments, its override.

    Args:
      values: where the flags go.
      argv: the arguments of the binary.
      text: help of the flag.
    """
    config_flags.DEFINE_config_file(
        "config", None, text, flag_values=values, lock_config=True, sys_argv=list(argv)
    )
    values["config"].parser = _ConfigParser()


class _ConfigParser(flags.ArgumentParser):
    """Runs a config file; whatever goes wrong there is a `ValueError` of one line."""

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        path, *arguments = argument.split(":", 1)
        path = os.path.expanduser(path)
        try:
            config = _get_config(path, arguments)
        except InputError:
            raise
        except Exception as error:
            raise InputError(_described(path, error)) from None
        if not isinstance(config, ml_collections.ConfigDict):
            raise InputError(
                f"get_config() must return a ConfigDict, got {type(config).__name__} from {path}"
            )
        config.lock()
        return config

    def flag_type(self) -> str:
        return "config file"


def _get_config(path: str, arguments: Sequence[str]) -> Any:
    """What the file's `get_config` returns."""
    with open(path, "rb"):
        pass  # An OSError of the file itself has its name.
    spec = importlib.util.spec_from_file_location("config_file", path)
    if spec is None:
        raise InputError(f"a config file must be a .py file, got {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise InputError(f"a config file must define get_config(), got {path} without it")
    return module.get_config(*arguments)


def _described(path: str, error: Exception) -> str:
    """The error with the line of the config file that it comes from."""
    if isinstance(error, OSError) and error.filename == path:
        return f"--config must name a config file, got {path}: {error.strerror}"
    rule = "a config file must run"
    if isinstance(error, ImportError):
        rule = "a config file imports installed packages and modules of the working folder"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]  # fmt: skip
    line = f", line {lines[-1]}" if lines else ""
    return f"{rule}, got {path}{line}: {type(error).__name__}: {error}"
