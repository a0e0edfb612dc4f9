import pytest

from hne_tf.bin import evaluate, report


@pytest.fixture(scope="module")
def evaluated(trained_workdir):
    assert evaluate.run([f"--workdir={trained_workdir.path}"]) == 0
    return trained_workdir.path


def test_a_run_is_shown_with_pictures(run_binary, evaluated, tmp_path):
    page = tmp_path / "new" / "report.html"
    # Flags may stand on both sides of the runs.
    code, lines, _ = run_binary(report, "--pictures=3", str(evaluated), f"--output={page}")
    assert code == 0
    assert lines[-1] == f"Written: {page}"
    text = page.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("data:image/png;base64,") == 3


def test_bad_input_is_refused(assert_refused, evaluated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(report, [], "one run or more", "got none")
    assert_refused(report, [str(tmp_path)], "config.json", str(tmp_path))
    assert_refused(report, [str(evaluated)] * 2, "each once")
    assert_refused(report, [str(evaluated), "--pictures=-1"], "pictures")
    assert_refused(report, [str(evaluated), f"--models={tmp_path}"], "hne_manifest.json")
    assert list(tmp_path.iterdir()) == []
