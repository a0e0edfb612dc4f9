import dataclasses
import io
import json
import math
import pathlib
import sys

import pytest

from configs import cifar10_large, cifar10_small, cifar100_large, cifar100_small
from configs.sweeps import (
    architectures_cifar10,
    augmentation_cifar10,
    depth_cifar10,
    grid_architectures_cifar10,
    grid_cifar10,
    grid_digits,
    objectives_cifar10,
    objectives_digits,
)
from hne_tf.data.sets.tfds_sets import STATISTICS
from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.sweeps import plan, report, worker
from hne_tf.sweeps.runner import Runner
from hne_tf.sweeps.store import Store
from hne_tf.training import build
from hne_tf.training.config import default, digest
from hne_tf.training.workdir import Workdir

ROOT = pathlib.Path(__file__).parents[3]
GROUPS = [
    ("independent", {"objective.name": "independent"}),
    ("hierarchical", {"objective.hierarchical.alpha": 0.25}),
]


def described(groups=GROUPS, seeds=(0, 1), split="test", deterministic=True, **comparisons):
    base = default()
    base.training.deterministic = deterministic
    return plan.describe(
        title="Tiny", base=base, groups=groups, seeds=seeds, split=split, **comparisons
    )


def test_runs_are_groups_times_seeds_with_settings_of_their_own():
    sweep = plan.parse(described())
    assert [(run.group, run.seed) for run in sweep.runs] == [
        ("independent", 0),
        ("hierarchical", 0),
        ("independent", 1),
        ("hierarchical", 1),
    ]
    settings = [
        (run.config.objective.name, run.config.objective.hierarchical.alpha) for run in sweep.runs
    ]
    assert settings == [("independent", 0.5), ("hierarchical", 0.25)] * 2
    assert [run.config.seed for run in sweep.runs] == [0, 0, 1, 1]
    assert len({run.digest for run in sweep.runs}) == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"groups": [("a", {"objective.hierarchical.alhpa": 1.0})]},
            "'a' .* got 'objective.*alhpa'",
        ),
        ({"groups": [("a", {"alpha": 1.0})]}, "'a' .* got 'alpha'"),
        (
            {"groups": [("a", {"objective.hierarchical.alpha": "one"})]},
            "'a' .* of its type, got 'one'",
        ),
        (
            # Not set, but typed.
            {"groups": [("a", {"model.resnet.stem_width": "wide"})]},
            "'a' .* of its type, got 'wide'",
        ),
        ({"groups": [("a", {}), ("a", {"seed": 1})]}, "names of groups must differ, got a more"),
        ({"groups": [("a", {}), ("b", {})]}, "differ in their settings, got 'a' = 'b'"),
        ({"groups": [("a", {}), ("b", {"data.data_dir": "/"})]}, "got 'a' = 'b'"),
        ({"groups": [("a", {"seed": 1})]}, "'a' must leave the seed"),
        ({"groups": []}, "a group or more, got none"),
        ({"seeds": ()}, r"one integer of 0 or more, or several, got \(\)"),
        ({"seeds": (-1,)}, r"got \(-1,\)"),
        ({"seeds": (1, 1)}, "seeds must differ, got 1 more"),
        ({"split": "train"}, "one of validation, test, got train"),
        ({"deterministic": False}, "training.deterministic must be True"),
        ({"reference": "hne"}, "one of the groups independent, hierarchical, got 'hne'"),
    ],
)
def test_a_sweep_that_breaks_a_rule_is_refused(changes, words):
    with pytest.raises(InputError, match=words):
        plan.parse(described(**changes))


def test_the_config_of_a_run_is_no_sweep():
    with pytest.raises(
        InputError, match=r"has the fields title, split, seeds, reference, .* got data"
    ):
        plan.parse(default())


def evaluated(store, run, accuracies, **changes):
    """Puts a finished run into the store."""
    workdir = store.workdir(run)
    workdir.claim(run.config, restart=False)
    rows = [
        {"size": size, "accuracy": value, "disagreement": value / 2, "multiply_adds": 1000 * size}
        for size, value in accuracies.items()
    ]
    evaluation = {"step": 9, "total_steps": 9, "sizes": rows, "mean_leaf_accuracy": 0.5, **changes}
    for split in ("test", "train"):
        workdir.evaluation_path(split).write_text(json.dumps(evaluation))
    return {"test": evaluation, "train": evaluation}


def test_only_evaluations_of_the_last_step_count(tmp_path):
    store, (run, other, *_) = Store(tmp_path), plan.parse(described()).runs
    assert store.evaluations(run, ("test",)) is None
    written = evaluated(store, run, {1: 0.5})
    assert store.evaluations(run, ("test", "train")) == written
    assert store.evaluations(run, ("test", "validation")) is None
    evaluated(store, other, {1: 0.5}, step=8)
    assert store.evaluations(other, ("test",)) is None
    unended = '{"step": 3, "total_steps": null}'
    for damaged in ('{"step"', "{}", "[]", "null", "[" * 100_000, unended):
        store.workdir(run).evaluation_path("test").write_text(damaged)
        assert store.evaluations(run, ("test",)) is None


def test_a_run_that_ends_well_without_its_evaluations_has_failed(tmp_path, monkeypatch):
    store, (run, *_) = Store(tmp_path / "root"), plan.parse(described()).runs
    lines = []
    # It does nothing, and ends with zero.
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with store.claimed(lines.append) as lock:
        outcome = Runner(store, lock, ("test",), 1, lines.append).run([run])
    assert outcome.failed == (run,)
    assert "ended without its evaluations" in lines[-1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("InputError: pictures must be sound\nTraceback:\n\t [[node]]", "pictures must be sound"),
        ("no memory\nHint: buy some", "RuntimeError: no memory Hint: buy some"),
    ],
)
def test_the_last_line_of_a_log_tells_why_a_run_has_failed(monkeypatch, capsys, error, told):
    job = worker.Job(0, "run", {}, ("test",))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(dataclasses.asdict(job))))
    monkeypatch.setattr(worker, "_end_with", lambda parent: None)

    def fail(job):
        raise RuntimeError(error)

    monkeypatch.setattr(worker, "_run", fail)
    assert worker.main() == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"hne-sweep: {told}"


def test_folders_are_named_by_the_digest_and_known_by_their_settings(tmp_path):
    store, (run, *_) = Store(tmp_path), plan.parse(described()).runs
    evaluated(store, run, {1: 0.5})
    (folder,) = tmp_path.iterdir()
    assert folder.name == digest(run.config)[:16]
    # As if made before a field was added, which changes every digest.
    fields = json.loads((folder / "config.json").read_text())
    del fields["distribution"]
    (folder / "config.json").write_text(json.dumps(fields))
    folder.rename(tmp_path / "0123456789abcdef")
    assert store.workdir(run).path.name == "0123456789abcdef"
    assert Store(tmp_path).evaluations(run, ("test",))


def test_runs_on_other_pictures_are_other_runs(tmp_path):
    for folder in ("one", "other"):
        for path in ("train/ant/0.png", "train/bee/0.png", "test/ant/0.png", "test/bee/0.png"):
            (tmp_path / folder / path).parent.mkdir(parents=True)
            (tmp_path / folder / path).write_bytes(folder.encode())

    def run_on(folder):
        config = described(seeds=(0,))
        config.base.data.update({"name": "image_folder", "data_dir": str(tmp_path / folder)})
        return plan.parse(config).runs[0]

    store, run, other = Store(tmp_path / "root"), run_on("one"), run_on("other")
    assert run.digest != other.digest
    evaluated(store, run, {1: 0.5})
    assert store.evaluations(run, ("test",))
    assert store.evaluations(other, ("test",)) is None
    # Pictures that have only moved are the same.
    (tmp_path / "one").rename(tmp_path / "moved")
    assert store.evaluations(run_on("moved"), ("test",))


def test_what_is_left_of_a_run_killed_at_its_first_breath_is_removed(tmp_path):
    store, (run, *_) = Store(tmp_path), plan.parse(described()).runs
    path = store.workdir(run).path
    store.discard_unbegun(run)
    # Killed before the settings, or within the first checkpoint, were written.
    (path / "checkpoints/ckpt-0_temp").mkdir(parents=True)
    store.discard_unbegun(run)
    assert not path.exists()
    Workdir(path).claim(run.config, restart=False)
    (path / "checkpoints/ckpt-0.index").touch()
    store.discard_unbegun(run)
    assert path.exists()


def test_a_root_that_holds_something_else_is_refused(tmp_path):
    store, (run, *_) = Store(tmp_path), plan.parse(described()).runs
    evaluated(store, run, {1: 0.5})
    with store.claimed(print):
        Store(tmp_path)
    (tmp_path / "letters").mkdir()
    with pytest.raises(InputError, match=r"only sweeps have filled, got .* with 'letters'"):
        Store(tmp_path)
    file = tmp_path / "letters/one.txt"
    file.touch()
    with pytest.raises(InputError, match="must be a folder, got the file"):
        Store(file)


def test_a_root_takes_one_sweep_at_a_time(tmp_path):
    lines = []
    with Store(tmp_path).claimed(lines.append):
        with pytest.raises(InputError, match="one sweep at a time"):
            Store(tmp_path).claimed(lines.append, patience_s=0.2).__enter__()
        assert lines == [f"waiting for another sweep in {tmp_path} to stop"]
    with Store(tmp_path).claimed(lines.append):
        pass


def summary_of(accuracies, seeds, tmp_path):
    """A summary of the group `independent` and a missing group."""
    sweep = plan.parse(described(seeds=seeds))
    store = Store(tmp_path)
    found = {}
    runs = [run for run in sweep.runs if run.group == "independent"]
    for run, accuracy in zip(runs, accuracies, strict=False):
        found[run.group, run.seed] = evaluated(store, run, accuracy)
    return report.summarise(sweep, found)


def cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_figures_are_means_and_sample_deviations(tmp_path):
    summary = summary_of([{1: 0.6, 4: 0.7}, {1: 0.62, 4: 0.73}], (0, 1), tmp_path)
    group = summary["groups"][0]
    assert group["mean"]["accuracy"] == pytest.approx({"1": 0.61, "4": 0.715})
    assert group["deviation"]["accuracy"] == pytest.approx({"1": 0.02**0.5 / 10, "4": 0.0212132})
    assert group["mean"]["disagreement"] == pytest.approx(0.3575)
    assert [run["seed"] for run in group["runs"]] == [0, 1]
    lines = report.markdown(summary).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    assert [cells(lines[row]) for row in (0, 2, 3)] == [
        ["group", "seeds", "1", "4", "mean leaf", "gain", "disagreement", "train"],
        [
            *("independent", "2", "61.0 ± 1.4", "71.5 ± 2.1", "50.0 ± 0.0"),
            *("21.5 ± 2.1", "0.357 ± 0.011", "71.5 ± 2.1"),
        ],
        ["hierarchical", "0 of 2", *["–"] * 6],  # noqa: RUF001
    ]


def test_networks_with_exits_are_shown_in_both_ways_in_which_they_answer(tmp_path):
    sweep, store = plan.parse(described(seeds=(0,))), Store(tmp_path)
    rows = [{"size": 1, "accuracy": 0.6, "disagreement": 0.0, "multiply_adds": 900}]
    by_average = {"last": rows, "logits": [{**rows[0], "accuracy": 0.8, "multiply_adds": 1000}]}
    run = sweep.runs[0]
    found = {(run.group, 0): evaluated(store, run, {1: 0.6}, sizes_by_average=by_average)}
    alone, together, tree = report.summarise(sweep, found)["groups"]
    assert (alone["name"], together["name"]) == (
        "independent, each exit alone",
        "independent, exits together",
    )
    assert (alone["mean"]["accuracy"], alone["multiply_adds"]) == ({"1": 0.6}, {"1": 900})
    assert (together["mean"]["accuracy"], together["multiply_adds"]) == ({"1": 0.8}, {"1": 1000})
    assert together["mean"]["train_accuracy"] == 0.8
    assert (tree["name"], tree["runs"]) == ("hierarchical", [])


def test_one_run_has_no_deviation(tmp_path):
    summary = summary_of([{1: 0.6}], (0, 1), tmp_path)
    assert cells(report.markdown(summary).splitlines()[2]) == [
        *("independent", "1 of 2", "60.0", "50.0", "10.0", "0.300", "60.0")
    ]
    report.plot(summary, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 1000


def test_a_page_has_the_comparisons_that_its_sweep_asks_for(tmp_path):
    summary = summary_of([{1: 0.6, 4: 0.7}, {1: 0.62, 4: 0.73}], (0, 1), tmp_path)
    summary["groups"][1] = {**summary["groups"][0], "name": "hierarchical"}
    assert report.comparisons(plan.parse(described()), summary) == ""
    sweep = plan.parse(described(reference="independent", equal_computation=True))
    text = report.comparisons(sweep, summary)
    against, equal = text.index("## Against independent"), text.index("## At equal computation")
    assert against < text.index("| hierarchical") < equal < text.rindex("| hierarchical")


def test_settings_are_told_without_the_place_of_data():
    config = described()
    config.base.data.data_dir = "/somewhere"
    text = report.settings(plan.parse(config))
    assert "--config.training.deterministic=True" in text
    assert "- hierarchical: `objective.hierarchical.alpha=0.25`" in text
    assert "Seeds 0, 1" in text
    assert "somewhere" not in text


SWEEPS = {
    architectures_cifar10: (24, "test"),
    augmentation_cifar10: (4, "test"),
    depth_cifar10: (8, "test"),
    objectives_digits: (66, "test"),
    objectives_cifar10: (24, "test"),
    grid_digits: (81, "validation"),
    grid_cifar10: (3, "validation"),
    grid_architectures_cifar10: (27, "validation"),
}


@pytest.mark.parametrize("module", SWEEPS)
def test_every_sweep_is_as_large_as_it_says_and_fits_its_model(module):
    sweep = plan.parse(module.get_config())
    runs, split = SWEEPS[module]
    assert (len(sweep.runs), sweep.split) == (runs, split)
    assert f"{runs} runs" in module.__doc__
    assert f"--config=configs/sweeps/{pathlib.Path(module.__file__).name}" in module.__doc__
    for run in sweep.runs[: len(sweep.groups)]:
        blocks = build.architecture(run.config).blocks
        assert blocks == build.tree(run.config).blocks - build.has_exits(run.config)
        # Teachers are trained runs, which are not there.
        if run.config.objective.name != "outside":
            build.objective(run.config, 2.0)


def test_all_sweeps_are_tested():
    files = {pathlib.Path(module.__file__).name for module in SWEEPS}
    assert files == {path.name for path in (ROOT / "configs/sweeps").glob("[a-z]*.py")}


@pytest.mark.parametrize(
    ("module", "classes", "parameters"),
    [
        (cifar10_small, 10, 414_824),
        (cifar10_large, 10, 1_540_656),
        (cifar100_small, 100, 508_424),
        (cifar100_large, 100, 1_726_416),
    ],
)
def test_configs_of_the_full_setting_build_models_of_known_size(module, classes, parameters):
    config = module.get_config()
    name = pathlib.Path(module.__file__).name
    assert f"--config=configs/{name}" in module.__doc__
    assert name == f"{config.data.name}_{config.model.preset}.py"
    assert (config.training.epochs, config.data.pad_pixels, config.data.flip) == (300.0, 4, True)
    mean, std = STATISTICS[config.data.name]
    images = ImageSpec((32, 32, 3), tuple(map(str, range(classes))), mean, std)
    model = build.ensemble(config, build.training_layers(config), images)
    assert model.output_shape == (None, 16, classes)
    assert sum(math.prod(weight.shape) for weight in model.trainable_weights) == parameters
