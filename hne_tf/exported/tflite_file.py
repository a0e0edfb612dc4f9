"""A TFLite file that carries its manifest.

The manifest is `hne_manifest.json` in a zip archive behind the model's flatbuffer,
which is where TFLite keeps its "associated files": interpreters do not look past
the flatbuffer, and any zip reader, on a phone too, opens the file as an archive.
The manifest holds length and SHA-256 of the flatbuffer, so that a file which is
damaged or cut off anywhere is noticed. This module needs no TensorFlow.
"""

import dataclasses
import hashlib
import io
import pathlib
import struct
import zipfile
import zlib

from hne_tf.errors import InputError
from hne_tf.exported.manifest import MOST_BYTES, Flatbuffer, Manifest
from hne_tf.files import replacing

# What a file can be made of, see `export.tflite`.
MODES = ("float32", "float16", "dynamic_range", "int8")

MANIFEST = "hne_manifest.json"

_IDENTIFIER = b"TFL3"
# What zipfile raises for files that are no archives, or for damaged ones.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def write(path: pathlib.Path, flatbuffer: bytes, manifest: Manifest) -> None:
    """Writes a model with its manifest, complete or not at all.

    Args:
      path: the file, replaced if it is there.
      flatbuffer: the model, as the converter gives it.
      manifest: its `flatbuffer` is filled in here.

    Raises:
      InputError: if the flatbuffer is no TFLite model.
    """
    if not _is_tflite(flatbuffer):
        raise InputError(f"a TFLite model must have {_IDENTIFIER!r} in it, got {flatbuffer[:8]!r}")
    text = dataclasses.replace(manifest, flatbuffer=_fingerprint(flatbuffer)).to_text()
    # The date of a plain ZipInfo is fixed: equal models give equal files.
    entry = zipfile.ZipInfo(MANIFEST)
    entry.compress_type = zipfile.ZIP_DEFLATED
    with replacing(path) as temporary:
        temporary.write_bytes(flatbuffer)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(entry, text)


def read_manifest(path: str | pathlib.Path) -> Manifest:
    """The manifest of a file that is whole.

    Returns:
      What `write` was given, with the `flatbuffer`.

    Raises:
      InputError: if the file is missing, damaged, cut off or not one of `write`.
    """
    return read(pathlib.Path(path))[1]


def read_flatbuffer(path: str | pathlib.Path) -> bytes:
    """The model alone, without the archive behind it; raises as `read_manifest` does."""
    return read(pathlib.Path(path))[0]


def write_manifest(path: str | pathlib.Path, manifest: Manifest) -> None:
    """Replaces the manifest of a file; the model in it stays as it is.

    Raises:
      InputError: as `read_manifest` does; the file is as it was then.
    """
    path = pathlib.Path(path)
    write(path, read(path)[0], manifest)


def read(path: pathlib.Path) -> tuple[bytes, Manifest]:
    """Flatbuffer and manifest of a file, checked against each other.

    Raises:
      InputError: as `read_manifest` does.
    """
    # Opening a pipe would wait for its writer, and a device has no end.
    if path.is_fifo() or path.is_char_device():
        raise InputError(
            f"a model must be a readable TFLite file, got {str(path)!r}: a pipe or a device"
        )
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"a model must be a readable TFLite file, got {str(path)!r}: {reason}"
        ) from None
    if not _is_tflite(content):
        raise InputError(
            f"a model must be a TFLite file, got {str(path)!r}, which has another format"
        )
    text, start = _archived(content, path)
    manifest = Manifest.from_text(text, f"{MANIFEST} in {str(path)!r}")
    flatbuffer = content[:start]
    if manifest.flatbuffer != _fingerprint(flatbuffer):
        raise InputError(
            f"the model must be the one that its manifest describes, got {str(path)!r}, "
            "which is damaged"
        )
    return flatbuffer, manifest


def _archived(content: bytes, path: pathlib.Path) -> tuple[bytes, int]:
    """Text of the manifest, and where the archive starts."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            start = min((entry.header_offset for entry in archive.infolist()), default=0)
            text = _bounded(archive) if MANIFEST in archive.namelist() else None
    except _DAMAGE:
        raise InputError(
            "a TFLite file must be one that hne-convert-tflite wrote and whole, got "
            f"{str(path)!r}, which ends without a manifest: another model's, or cut off"
        ) from None
    if text is None:
        raise InputError(
            "a TFLite file must be one that hne-convert-tflite wrote, got "
            f"{str(path)!r}, whose archive is without {MANIFEST}"
        )
    return text, start


def _bounded(archive: zipfile.ZipFile) -> bytes:
    """The manifest, or a byte more than one may have: an archive can unpack to any size."""
    if archive.getinfo(MANIFEST).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile
    with archive.open(MANIFEST) as stream:
        return stream.read(MOST_BYTES + 1)


def _is_tflite(content: bytes) -> bool:
    return content[4:8] == _IDENTIFIER


def _fingerprint(flatbuffer: bytes) -> Flatbuffer:
    return Flatbuffer(bytes=len(flatbuffer), sha256=hashlib.sha256(flatbuffer).hexdigest())
