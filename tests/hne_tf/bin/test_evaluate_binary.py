import json
import shutil
import types

import numpy as np
import pytest

from hne_tf import pretrained
from hne_tf.bin import evaluate
from hne_tf.training import trained


def test_a_run_is_measured_and_drawn(run_binary, trained_workdir):
    flags = [f"--workdir={trained_workdir.path}", "--coverage=0.8"]
    code, lines, _ = run_binary(evaluate, *flags)
    assert code == 0
    table = [line for line in lines if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in table[2:5]] == ["1", "2", "4"]
    evaluation = json.loads(trained_workdir.evaluation_path("test").read_text())
    assert [row["size"] for row in evaluation["sizes"]] == [1, 2, 4]
    assert evaluation["step"] == 30
    assert evaluation["calibration"]["coverage"] == 0.8
    curve = evaluation["early_stopping"]["curve"]
    assert [row.split("|")[1].strip() for row in table[7 : 7 + len(curve)]] == [
        f"{row['target_multiply_adds']:,}" for row in curve
    ]
    # Beneath its two lines of header, the table of the ten classes.
    assert [row.split("|")[1].strip() for row in table[-10:]] == list("0123456789")
    assert all(len(row["thresholds"]) == 3 for row in curve)
    for picture in ("accuracy.png", "accuracy.svg"):
        assert (trained_workdir.path / picture).stat().st_size > 1000


def test_another_average_does_not_touch_the_run_s_own_figures(run_binary, trained_workdir):
    run_binary(evaluate, f"--workdir={trained_workdir.path}")
    own = trained_workdir.evaluation_path("test").read_text()
    flags = [f"--workdir={trained_workdir.path}", "--average=cached_logits"]
    code, _, _ = run_binary(evaluate, *flags)
    assert code == 0
    assert trained_workdir.evaluation_path("test").read_text() == own
    kept = json.loads((trained_workdir.path / "evaluation_cached_logits.json").read_text())
    (*_, before), (*_, after) = json.loads(own)["sizes"], kept["sizes"]
    # Costs are the same, and answers differ.
    assert after["multiply_adds"] == before["multiply_adds"]
    assert after["nll"] != before["nll"]
    assert (trained_workdir.path / "accuracy_cached_logits.png").exists()


def test_another_split_does_not_touch_the_test_figures(run_binary, trained_workdir):
    run_binary(evaluate, f"--workdir={trained_workdir.path}")
    before = trained_workdir.evaluation_path("test").read_text()
    code, lines, _ = run_binary(evaluate, f"--workdir={trained_workdir.path}", "--split=validation")
    assert code == 0
    assert any(line.startswith("validation split, 180 examples") for line in lines)
    assert not any("target_multiply_adds" in line for line in lines)
    assert trained_workdir.evaluation_path("test").read_text() == before


def test_weights_that_come_with_no_run_are_measured(run_binary, trained_workdir, tmp_path):
    run = trained.restore(trained_workdir)
    manifest = types.SimpleNamespace(accuracy=None)
    pretrained.save(run, manifest, tmp_path / "tiny.npz")
    page = tmp_path / "results.md"
    flags = [f"--pretrained={tmp_path / 'tiny.npz'}", f"--results={page}"]
    code, lines, _ = run_binary(evaluate, *flags)
    assert code == 0
    _, of_run, _ = run_binary(evaluate, f"--workdir={trained_workdir.path}")
    tables = [[line for line in each if line.startswith("|")] for each in (lines, of_run)]
    assert tables[0] == tables[1]
    assert lines[-1] == f"Written: {page}, {page.with_suffix('.png')}"
    assert page.with_suffix(".png").stat().st_size > 1000


def test_there_is_one_thing_to_measure(assert_refused, trained_workdir):
    both = [f"--workdir={trained_workdir.path}", "--pretrained=cifar10_cpu"]
    for flags in ([], both):
        assert_refused(evaluate, flags, "one of --workdir and --pretrained")


def test_a_page_of_results_tells_how_it_was_made(run_binary, trained_workdir, tmp_path):
    page = tmp_path / "results" / "tiny.md"
    code, lines, _ = run_binary(evaluate, f"--workdir={trained_workdir.path}", f"--results={page}")
    assert code == 0
    text = page.read_text()
    assert f"hne-evaluate --workdir={trained_workdir.path} --results={page}" in text
    assert "cores" in text
    assert "--config.model.branching=(1, 2, 2)" in text
    assert "data_dir" not in text
    assert "\n".join(lines[:-1]) in text
    assert page.with_suffix(".png").exists()


def test_a_run_that_has_not_ended_is_said_to_be_so(run_binary, trained_workdir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained_workdir.path, folder)
    for file in (folder / "checkpoints").glob("ckpt-30.*"):
        file.unlink()
    _, lines, _ = run_binary(evaluate, f"--workdir={folder}")
    assert lines[0] == "note: the run has come to step 20 of 30"
    assert any("weights of step 20 of 30" in line for line in lines)


def test_what_is_no_run_is_refused(assert_refused, tmp_path):
    assert_refused(evaluate, [f"--workdir={tmp_path}"], "config.json", str(tmp_path))
    assert_refused(evaluate, [f"--workdir={tmp_path}", "--split=dev"], "dev")
    assert_refused(evaluate, [], "workdir")


def test_a_run_without_a_sound_checkpoint_is_refused(assert_refused, trained_workdir, tmp_path):
    (tmp_path / "config.json").write_text(trained_workdir.config_path.read_text())
    assert_refused(evaluate, [f"--workdir={tmp_path}"], "checkpoint")


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_kept(
    assert_refused, trained_workdir, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(trained_workdir.path, folder)
    damaged = list((folder / "checkpoints").glob("*.index"))
    for file in damaged:
        file.write_bytes(file.read_bytes()[:20])
    assert_refused(evaluate, [f"--workdir={folder}"], "sound checkpoint", "--restart")
    assert all(file.exists() for file in damaged)


def test_corrupted_images_are_measured_when_asked_for(run_binary, trained_workdir):
    arguments = [f"--workdir={trained_workdir.path}", "--corruption_examples=50"]
    code, lines, _ = run_binary(evaluate, *arguments)
    assert code == 0
    corruptions = json.loads(trained_workdir.evaluation_path("test").read_text())["corruptions"]
    assert corruptions["examples"] == 50
    (row,) = (line for line in lines if line.startswith("| mean "))
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        f"{accuracy:.2%}" for accuracy in corruptions["mean"].values()
    ]
    run_binary(evaluate, f"--workdir={trained_workdir.path}")
    assert json.loads(trained_workdir.evaluation_path("test").read_text())["corruptions"] is None


@pytest.mark.parametrize("split", ["validation", "train"])
def test_corrupted_test_images_are_not_measured_beside_another_split(
    assert_refused, trained_workdir, split
):
    arguments = [f"--workdir={trained_workdir.path}", f"--split={split}"]
    assert_refused(evaluate, [*arguments, "--corruption_examples=50"], "test split", split)


def test_images_of_other_classes_are_told_apart(run_binary, trained_workdir, tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        f"{split}_{part}": value
        for split in ("train", "test")
        for part, value in (
            ("images", random.integers(0, 256, (40, 8, 8, 1), np.uint8)),
            ("labels", np.arange(40) % 3),
        )
    }
    np.savez(tmp_path / "noise.npz", **arrays)
    flags = [f"--workdir={trained_workdir.path}", "--other_data=npz"]
    flags.append(f"--other_data_dir={tmp_path / 'noise.npz'}")
    code, lines, _ = run_binary(evaluate, *flags)
    assert code == 0
    found = json.loads(trained_workdir.evaluation_path("test").read_text())["out_of_distribution"]
    assert (found["data_set"], found["examples"]) == ("npz", 40)
    figures = " ".join(f"{size}: {area:.4f}" for size, area in found["auroc"].items())
    assert any(line.endswith(f"by size: {figures}.") for line in lines)


def test_images_of_other_classes_go_with_the_test_split(assert_refused, trained_workdir):
    flags = [f"--workdir={trained_workdir.path}", "--other_data=digits", "--split=train"]
    assert_refused(evaluate, flags, "--other_data goes with the test split, got digits")
