"""What serving needs of a published model's manifest."""

import dataclasses
import json
import math
import pathlib

from hne_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class ServingManifest:
    """The part of `hne_manifest.json` that a client uses.

    Attributes:
      model: name of the model.
      classes: class names in the order of the outputs.
      image_shape: height, width and channels of an input image.
      p95_ms: measured latency of one image per ensemble size: the 95th
        percentile in milliseconds, without transport.
    """

    model: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    p95_ms: dict[int, float]


def read_manifest(path: str | pathlib.Path) -> ServingManifest:
    """Reads a manifest.

    Raises:
      InputError: if the file cannot be read, is not a manifest, or holds no
        latency at batch size 1 for one of its sizes.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"manifest must be a readable file, got {str(path)!r}: {error}") from error
    except ValueError as error:
        raise InputError(f"manifest must be JSON, got {str(path)!r}: {error}") from error
    try:
        sizes = [int(size) for size in content["sizes"]]
        _, height, width, channels = content["input"]["shape"]
        manifest = ServingManifest(
            model=str(content["model"]),
            classes=tuple(str(name) for name in content["classes"]),
            image_shape=(int(height), int(width), int(channels)),
            p95_ms=_latencies(content["latency"]["measurements"], sizes),
        )
    except KeyError as error:
        raise InputError(f"manifest must have the key {error}, got {str(path)!r}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"manifest must be an export's hne_manifest.json, got {str(path)!r}: {error}"
        ) from error
    missing = sorted(set(sizes) - set(manifest.p95_ms))
    if missing or not sizes:
        raise InputError(
            "manifest must hold a latency at batch size 1 for every ensemble size, "
            f"got none for {missing or 'any'} in {str(path)!r}"
        )
    if not all(0 < latency < math.inf for latency in manifest.p95_ms.values()):
        raise InputError(
            "manifest must hold latencies of more than 0 ms, "
            f"got {manifest.p95_ms} in {str(path)!r}"
        )
    return manifest


def _latencies(measurements: list[dict], sizes: list[int]) -> dict[int, float]:
    by_signature = {
        entry["signature"]: float(entry["p95_ms"])
        for entry in measurements
        if entry["batch_size"] == 1
    }
    return {
        size: by_signature[f"ensemble_{size}"]
        for size in sizes
        if f"ensemble_{size}" in by_signature
    }
