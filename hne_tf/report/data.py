"""What a report shows, as JSON values, collected from runs and their exports."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.exported.model import ExportedModel
from hne_tf.files import read_json
from hne_tf.report import drawing, gallery
from hne_tf.training import build, trained
from hne_tf.training import config as configs
from hne_tf.training.workdir import Workdir

# What the page needs of an evaluation, see `evaluation.evaluate`.
_NEEDED = ("split", "examples", "step", "total_steps", "sizes", "sizes_by_average")
_NEEDED += ("leaf_accuracy", "early_stopping")
_NEEDED_OF_SIZE = ("accuracy", "gain", "multiply_adds", "parameters", "reliability")


def collect(
    workdirs: Sequence[Workdir],
    models: Sequence[ExportedModel] = (),
    pictures: int = 40,
    data_dir: str | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Gathers the figures of some runs, and what they answer to test images.

    Args:
      workdirs: folders of evaluated runs.
      models: exported from these runs, with measured latencies in their manifests; one
        per run at most.
      pictures: how many test images to show of each run; with 0 neither data sets nor
        checkpoints are read.
      data_dir: where the data sets lie, if not where the runs found them.
      report: gets what `trained.restore` has to say.

    Returns:
      `runs`: each with its `name`, `kind` (`"tree"` or `"exits"`), `shape`, `leaves`,
      `average`, `data_set`, `settings` (pairs of field and value that differ from the
      defaults), `evaluation`, `tree` (see `drawing.describe`), `latency` (see
      `latency_of`, or None) and `gallery` (see `gallery.collect`, or None).

    Raises:
      InputError: for no run, the same one twice, one that is not evaluated or whose
        evaluation is of an older form or another step, or a model of no or of the
        same run.
    """
    names = _names(workdirs)
    settings = [workdir.read_config() for workdir in workdirs]
    evaluations = [read_evaluation(workdir) for workdir in workdirs]
    digests = [workdir.digest() for workdir in workdirs]
    latencies = _match(models, digests, evaluations)
    runs = []
    for number, workdir in enumerate(workdirs):
        evaluation = evaluations[number]
        described = _described(names[number], settings[number], evaluation)
        shown = None
        if pictures:
            run = trained.restore(workdir, data_dir, report)
            _check_step(workdir, evaluation, run.step)
            shown = gallery.collect(run, [row["size"] for row in evaluation["sizes"]], pictures)
        runs.append({**described, "latency": latencies[number], "gallery": shown})
    return {"runs": runs}


def read_evaluation(workdir: Workdir) -> dict[str, Any]:
    """What `hne-evaluate` measured on the test split.

    Raises:
      InputError: if it has not been run, or by a version whose evaluations lack what
        a report shows.
    """
    path = workdir.evaluation_path("test")
    if not path.exists():
        raise InputError(
            f"{workdir.path} must be evaluated first, hne-evaluate --workdir={workdir.path}, "
            f"got no {path.name}"
        )
    evaluation = read_json(path)
    missing = [key for key in _NEEDED if key not in evaluation]
    missing += [
        key for key in _NEEDED_OF_SIZE if any(key not in row for row in evaluation.get("sizes", []))
    ]
    if missing:
        raise InputError(
            f"{path} must be of this version, evaluate again with hne-evaluate "
            f"--workdir={workdir.path}, got one without {', '.join(missing)}"
        )
    return evaluation


def latency_of(model: ExportedModel) -> dict[str, Any]:
    """The measured latencies of a published model, of one image per call.

    Returns:
      `model`: its name; `hardware`, see `hardware.describe`; `threads`, None if the manifest is
      of an early version; `runs`, the timed calls; and `p50_ms` and `p95_ms` by size.

    Raises:
      InputError: if its manifest has none.
    """
    manifest = model.manifest
    by_size = {str(size): manifest.measurement(size, batch_size=1) for size in manifest.sizes}
    some = by_size[str(manifest.sizes[0])]
    return {
        "model": model.name,
        "hardware": dict(manifest.latency.hardware),
        "threads": some.threads,
        "runs": some.runs,
        "p50_ms": {size: row.p50_ms for size, row in by_size.items()},
        "p95_ms": {size: row.p95_ms for size, row in by_size.items()},
    }


def _names(workdirs: Sequence[Workdir]) -> list[str]:
    """What the runs are called: by their folder, or where those are alike by the whole path."""
    paths = [workdir.path.resolve() for workdir in workdirs]
    if not paths or len(set(paths)) < len(paths):
        listed = ", ".join(str(workdir.path) for workdir in workdirs) or "none"
        raise InputError(f"a report takes one run or more, each once, got {listed}")
    folders = [path.name for path in paths]
    return [
        path.name if folders.count(path.name) == 1 else str(workdir.path)
        for path, workdir in zip(paths, workdirs, strict=True)
    ]


def _described(
    name: str, config: ml_collections.FrozenConfigDict, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """What a run is, and what was measured of it."""
    tree = build.tree(config)
    exits = isinstance(tree, Exits)
    average = config.objective.average
    return {
        "name": name,
        "kind": "exits" if exits else "tree",
        "shape": [tree.exits] if exits else list(tree.branching),
        "leaves": tree.leaves,
        "average": average,
        "data_set": config.data.name,
        "settings": [
            [field, repr(value)]
            for field, (_, value) in configs.differences(configs.default(), config)
        ],
        "evaluation": evaluation,
        "tree": drawing.describe(tree, [row["size"] for row in evaluation["sizes"]], average),
    }


def _match(
    models: Sequence[ExportedModel],
    digests: Sequence[str],
    evaluations: Sequence[dict[str, Any]],
) -> list[dict[str, Any] | None]:
    """The latencies of each run, by the model that was exported from it."""
    # A compressed run has the settings of the run that it comes from, but other steps.
    keys = [
        (digest, evaluation["step"])
        for digest, evaluation in zip(digests, evaluations, strict=True)
    ]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for model in models:
        record = model.manifest.record
        key = (record.get("config_digest"), record.get("step"))
        if key not in keys:
            raise InputError(
                "models must be exported from the runs as they were evaluated, "
                f"got {str(model.path)!r} of other settings or another step"
            )
        if key in found:
            raise InputError(
                f"a run takes one model, got {found[key]['model']} and {str(model.path)!r} of "
                "the same"
            )
        found[key] = latency_of(model)
    return [found.get(key) for key in keys]


def _check_step(workdir: Workdir, evaluation: dict[str, Any], step: int) -> None:
    """Raises `InputError` if the run has gone on since it was evaluated."""
    if evaluation["step"] != step:
        raise InputError(
            f"{workdir.path} must be evaluated again, hne-evaluate --workdir={workdir.path}: "
            f"its figures are of step {evaluation['step']}, its newest weights of step {step}"
        )
