import json

import numpy as np
import pytest

from hne_tf.bin import compress, evaluate, train
from hne_tf.models import weights
from hne_tf.training import trained
from hne_tf.training.workdir import Workdir

METHODS = {
    "quantize": ["--method=quantize"],
    "train_quantized": ["--method=quantize", "--epochs=1", "--learning_rate=0.001"],
    "prune": ["--method=prune", "--epochs=1", "--sparsity=0.75"],
    "structure": ["--method=prune", "--epochs=1", "--structure=2:4"],
    "cluster": ["--method=cluster", "--epochs=1", "--clusters=8"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compressed")


def compressed(run_binary, trained_workdir, folder, name):
    """The workdir of a method, made once, and what was printed."""
    workdir = Workdir(folder / name)
    lines = []
    if not workdir.path.exists():
        code, lines, errors = run_binary(
            compress,
            f"--workdir={trained_workdir.path}",
            f"--output={workdir.path}",
            *METHODS[name],
        )
        assert code == 0, errors
    return workdir, lines


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_compressed_run_is_a_run(run_binary, trained_workdir, folder, name):
    workdir, lines = compressed(run_binary, trained_workdir, folder, name)
    assert {path.name for path in workdir.path.parent.iterdir()} <= METHODS.keys()
    description = json.loads(workdir.compression_path.read_text())
    assert description["accuracy"]["before"].keys() == {"1", "2", "4"}
    for size, after in description["accuracy"]["after"].items():
        before = description["accuracy"]["before"][size]
        assert f"| {size:>4} | {before:6.2%} | {after:6.2%} |" in lines
    conv = next(row for row in description["kernels"] if row["kind"] == "conv")
    assert conv["treated"] == conv["kernels"]
    factory = "QuantizedLayers" if "quantize" in name else "DeployLayers"
    run = trained.restore(workdir)
    assert description["factory"] == type(run.model.factory).__name__ == factory
    assert (run.step, run.total_steps) == (30, 30)
    assert run.config == trained_workdir.read_config()
    values = weights.read(run.model)
    kernel = values["block1/node1/unit0/conv2/kernel"]
    if name == "prune":
        assert np.mean(kernel == 0) == 0.75
    elif name == "structure":
        assert np.count_nonzero(kernel.reshape(9, 2, 4, 8), axis=2).max() == 2
    elif name == "cluster":
        assert len(np.unique(kernel)) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_quantized", "structure"])
def test_a_compressed_run_is_evaluated_as_any_other(run_binary, trained_workdir, folder, name):
    workdir, _ = compressed(run_binary, trained_workdir, folder, name)
    description = json.loads(workdir.compression_path.read_text())
    code, _, _ = run_binary(evaluate, f"--workdir={workdir.path}", "--split=validation")
    assert code == 0
    rows = json.loads(workdir.evaluation_path("validation").read_text())["sizes"]
    measured = {str(row["size"]): row["accuracy"] for row in rows}
    assert measured == pytest.approx(description["accuracy"]["after"], abs=0.006)


@pytest.mark.slow
def test_a_pruned_run_can_be_quantised(run_binary, trained_workdir, folder, tmp_path):
    pruned, _ = compressed(run_binary, trained_workdir, folder, "prune")
    output = tmp_path / "both"
    arguments = [f"--workdir={pruned.path}", f"--output={output}", "--method=quantize"]
    code, _, errors = run_binary(compress, *arguments)
    assert code == 0, errors
    both, before = (weights.read(trained.restore(Workdir(p)).model) for p in (output, pruned.path))
    assert all(np.array_equal(both[name], before[name]) for name in before)


@pytest.mark.slow
def test_compressed_runs_are_not_compressed_or_trained_further(
    run_binary, assert_refused, trained_workdir, folder, tmp_path
):
    output = f"--output={tmp_path / 'new'}"
    pruned, _ = compressed(run_binary, trained_workdir, folder, "prune")
    quantized, _ = compressed(run_binary, trained_workdir, folder, "quantize")
    again = [output, "--method=cluster"]
    assert_refused(compress, [f"--workdir={pruned.path}", *again], "pruned or clustered")
    assert_refused(compress, [f"--workdir={quantized.path}", *again], "quantised model")
    config = ["--config=configs/digits.py", f"--workdir={pruned.path}"]
    assert_refused(train, config, "compressed run")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method=shrink"], ["shrink"]),
        (["--method=prune", "--clusters=4"], ["--clusters is for --method=cluster"]),
        (["--method=quantize", "--sparsity=0.5"], ["--sparsity is for --method=prune"]),
        (["--method=prune", "--sparsity=0.5", "--structure=2:4"], ["one of --sparsity"]),
        (["--method=quantize", "--learning_rate=0.1"], ["--learning_rate", "--epochs"]),
        (["--method=prune", "--epochs=0"], ["epochs must be above 0", "0.0"]),
        (["--method=prune", "--sparsity=1"], ["sparsity must lie between 0 and 1"]),
        (["--method=cluster", "--clusters=1"], ["clusters must be 2 or more"]),
        (["--method=prune", "--learning_rate=-1"], ["learning_rate must be above 0"]),
    ],
)
def test_bad_flags(assert_refused, trained_workdir, tmp_path, flags, words):
    places = [f"--workdir={trained_workdir.path}", f"--output={tmp_path / 'new'}"]
    assert_refused(compress, [*places, *flags], *words)
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_is_kept(assert_refused, trained_workdir, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    arguments = [f"--workdir={trained_workdir.path}", f"--output={tmp_path}", "--method=quantize"]
    assert_refused(compress, arguments, "--output must be a new folder", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
