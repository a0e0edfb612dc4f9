"""A published version: a SavedModel with its manifest."""

import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from hne_tf import hardware
from hne_tf.errors import InputError
from hne_tf.exported import versions
from hne_tf.exported.manifest import Manifest
from hne_tf.exported.model import ExportedModel
from hne_tf.exported.session import Clock
from hne_tf.exported.steps import RunnableSignature, SignatureInput

# What TensorFlow loads of a version; its manifest and its warm-up requests are extras.
_GRAPH = "saved_model.pb"
_FILES = (_GRAPH, "variables/*")
_READ_BYTES = 1 << 20

# What TensorFlow raises for files that are damaged or not there.
_DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, tf.errors.OpError)


class SavedModel(ExportedModel):
    """See `ExportedModel`.

    Raises:
      InputError: if there is no SavedModel in the folder.
    """

    has_own_threads = False
    has_onednn = True

    def __init__(
        self, path: pathlib.Path, manifest: Manifest, clock: Clock = time.perf_counter
    ) -> None:
        super().__init__(path, manifest, clock)
        if not (path / _GRAPH).is_file():
            raise InputError(f"a version must hold {_GRAPH}, got {str(path)!r} without it")
        self._loaded: Any = None

    @property
    def name(self) -> str:
        return "/".join(self.path.resolve().parts[-2:])

    @property
    def mode(self) -> str:
        return "SavedModel"

    @property
    def default_threads(self) -> int:
        """All cores that this process may use."""
        return hardware.cores()

    @property
    def threads(self) -> int:
        return tf.config.threading.get_intra_op_parallelism_threads() or self.default_threads

    def parts(self) -> Iterator[bytes]:
        for pattern in _FILES:
            for file in sorted(self.path.glob(pattern)):
                with file.open("rb") as stream:
                    while part := stream.read(_READ_BYTES):
                        yield part

    def check_revisable(self) -> None:
        versions.check_version(self.path)

    def revise(self, manifest: Manifest) -> pathlib.Path:
        return versions.revise(self.path, {versions.MANIFEST: manifest.to_text()})

    def signature_names(self) -> frozenset[str]:
        return frozenset(self._graph().signatures)

    def _load_signature(self, name: str) -> RunnableSignature:
        return runnable(self._graph().signatures[name])

    def _graph(self) -> Any:
        # Signatures live only as long as the model that they were loaded with.
        if self._loaded is None:
            try:
                self._loaded = tf.saved_model.load(str(self.path))
            except _DAMAGE as error:
                reason = " ".join(str(error).split())
                raise InputError(
                    f"a version must hold a SavedModel that loads, got {str(self.path)!r}: {reason}"
                ) from error
        return self._loaded


def runnable(function: Any) -> RunnableSignature:
    """A concrete function of TensorFlow as a signature to call."""
    inference, captured = function.inference_fn, list(function.captured_inputs)
    inputs = tuple(
        SignatureInput(spec.name, tuple(spec.shape), np.dtype(spec.dtype.as_numpy_dtype))
        for spec in inference.function_type.flat_inputs
    )

    def run(values: Mapping[str, Any]) -> dict[str, tf.Tensor]:
        # Calling the signature itself would take as long again as a small step:
        # it binds arguments by name and looks for gradient tapes.
        return inference.call_preflattened(
            [tf.convert_to_tensor(values[each.name]) for each in inputs] + captured
        )

    return RunnableSignature(inputs, run)
