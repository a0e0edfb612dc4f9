"""What serving needs of a published model's manifest."""

import dataclasses
import json
import math
import pathlib
from typing import Any

from hne_tf.data.pixels import Pixels
from hne_tf.errors import InputError


@dataclasses.dataclass(frozen=True)
class ServingManifest:
    """The part of `hne_manifest.json` that a client uses.

    Attributes:
      model: name of the model.
      classes: class names in the order of the outputs.
      image_shape: height, width and channels of an input image.
      latency_ms: measured latency by batch size and ensemble size: the 95th
        percentile in milliseconds, without transport.
      steps: the depth-first steps, each with `signature`, `size`, `branch_block`,
        `input`, `starts_from` and `caches`; empty if the manifest has none.
      pixels: how a picture becomes an input image; None if the manifest is older.
    """

    model: str
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    latency_ms: dict[int, dict[int, float]]
    steps: tuple[dict[str, Any], ...]
    pixels: Pixels | None = None


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
            latency_ms=_latencies(content["latency"]["measurements"], sizes),
            steps=_steps(content.get("steps", [])),
            pixels=_pixels(content),
        )
    except KeyError as error:
        raise InputError(f"manifest must have the key {error}, got {str(path)!r}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"manifest must be an export's hne_manifest.json, got {str(path)!r}: {error}"
        ) from error
    missing = sorted(set(sizes) - set(manifest.latency_ms.get(1, {})))
    if missing or not sizes:
        raise InputError(
            "manifest must hold a latency at batch size 1 for every ensemble size, "
            f"got none for {missing or 'any'} in {str(path)!r}"
        )
    rows = manifest.latency_ms.values()
    known = [latency for row in rows for latency in row.values()]
    if not all(0 < latency < math.inf for latency in known) or min(manifest.latency_ms) < 1:
        raise InputError(
            "manifest must hold latencies of more than 0 ms at batch sizes of 1 or more, "
            f"got {manifest.latency_ms} in {str(path)!r}"
        )
    return manifest


def _latencies(measurements: list[dict], sizes: list[int]) -> dict[int, dict[int, float]]:
    ensembles = {f"ensemble_{size}": size for size in sizes}
    rows: dict[int, dict[int, float]] = {}
    for entry in measurements:
        size = ensembles.get(entry["signature"])
        if size is not None:
            rows.setdefault(int(entry["batch_size"]), {})[size] = float(entry["p95_ms"])
    return rows


def _pixels(content: dict[str, Any]) -> Pixels | None:
    if content.get("pixels") is None:
        return None
    pixels = Pixels.from_json(content["pixels"])
    if list(pixels.shape) != content["input"]["shape"][1:]:
        raise ValueError(f"images of pixels have the shape {pixels.shape}")
    return pixels


def _steps(steps: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    for number, step in enumerate(steps, start=1):
        if step["size"] != number or not {"signature", "input", "starts_from", "caches"} <= set(
            step
        ):
            raise ValueError(f"step {number} is described as {step}")
    return tuple(steps)
