"""A TFLite file that carries its manifest, computed by LiteRT."""

import functools
import pathlib
import time
from collections.abc import Iterator

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from hne_tf.errors import InputError
from hne_tf.exported import tflite_file
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import ExportedModel
from hne_tf.exported.session import Clock
from hne_tf.exported.steps import RunnableSignature, SignatureInput
from hne_tf.tree import is_positive_integer


class TFLiteModel(ExportedModel):
    """See `ExportedModel`.

    Args:
      path: the file.
      manifest: the one inside.
      threads: that compute, as many as LiteRT likes by default.
      clock: seconds.

    Raises:
      InputError: if `threads` is not 1 or more.
    """

    has_own_threads = True
    has_onednn = False

    def __init__(
        self,
        path: pathlib.Path,
        manifest: Manifest,
        threads: int | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        super().__init__(path, manifest, clock)
        if threads is not None and not is_positive_integer(threads):
            raise InputError(f"threads must be 1 or more, got {threads!r}")
        self._threads = threads

    @classmethod
    def open(cls, path: pathlib.Path, threads: int | None = None) -> "TFLiteModel":
        """Opens a file that is whole; raises `InputError` for any other."""
        return cls(path, tflite_file.read_manifest(path), threads)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def mode(self) -> str:
        return self.manifest.mode or "TFLite"

    @property
    def default_threads(self) -> int:
        """What LiteRT takes."""
        return 1

    @property
    def threads(self) -> int:
        return self._threads or self.default_threads

    def parts(self) -> Iterator[bytes]:
        yield tflite_file.read_flatbuffer(self.path)

    def check_revisable(self) -> None:
        """Every file can be revised."""

    def revise(self, manifest: Manifest) -> pathlib.Path:
        tflite_file.write_manifest(self.path, manifest)
        return self.path

    def signature_names(self) -> frozenset[str]:
        return frozenset(self._interpreter.get_signature_list())

    def _load_signature(self, name: str) -> RunnableSignature:
        runner = self._interpreter.get_signature_runner(name)
        inputs = tuple(
            SignatureInput(
                key,
                tuple(None if size < 0 else int(size) for size in detail["shape_signature"]),
                np.dtype(detail["dtype"]),
            )
            for key, detail in runner.get_input_details().items()
        )
        return RunnableSignature(inputs, lambda values: runner(**values))

    @functools.cached_property
    def _interpreter(self) -> Interpreter:
        try:
            return Interpreter(str(self.path), num_threads=self._threads)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"a TFLite file must be one that LiteRT loads, got {str(self.path)!r}: {reason}"
            ) from error
