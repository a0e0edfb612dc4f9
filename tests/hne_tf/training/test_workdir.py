import json
import subprocess
import sys

import pytest

from hne_tf.errors import InputError
from hne_tf.training.config import default
from hne_tf.training.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path / "run")


def test_settings_come_back_as_they_were(workdir):
    workdir.claim(default(), restart=False)
    assert workdir.read_config().to_dict() == default().to_dict()


def test_the_same_settings_may_go_on(workdir):
    workdir.claim(default(), restart=False)
    (workdir.checkpoints / "ckpt-1.index").touch()
    workdir.claim(default(), restart=False)
    assert (workdir.checkpoints / "ckpt-1.index").exists()


def test_a_run_older_than_a_setting_has_its_default(workdir):
    workdir.claim(default(), restart=False)
    fields = json.loads(workdir.config_path.read_text())
    del fields["objective"]["average"]
    workdir.config_path.write_text(json.dumps(fields))
    assert workdir.read_config().objective.average == default().objective.average
    workdir.claim(default(), restart=False)


def test_other_settings_are_refused_with_the_difference(workdir):
    workdir.claim(default(), restart=False)
    other = default()
    other.objective.hierarchical.alpha = 0.25
    before = workdir.config_path.read_text()
    with pytest.raises(InputError, match=r"objective\.hierarchical\.alpha: 0\.5 there, 0\.25 here"):
        workdir.claim(other, restart=False)
    assert workdir.config_path.read_text() == before


def test_data_may_move_between_resumptions(workdir):
    workdir.claim(default(), restart=False)
    moved = default()
    moved.data.data_dir = "/elsewhere"
    moved.data.download = True
    workdir.claim(moved, restart=False)
    assert workdir.read_config().data.data_dir == "/elsewhere"


def test_corrupt_data_may_be_skipped_from_a_resumption_on(workdir):
    workdir.claim(default(), restart=False)
    told = default()
    told.data.skip_corrupt = True
    workdir.claim(told, restart=False)
    assert workdir.read_config().data.skip_corrupt


def test_restart_moves_older_runs_aside(workdir):
    for seed in range(3):
        config = default()
        config.seed = seed
        workdir.claim(config, restart=True)
    seeds = {
        name: json.loads((workdir.path.parent / name / "config.json").read_text())["seed"]
        for name in ("run.1", "run.2", "run")
    }
    assert seeds == {"run.1": 0, "run.2": 1, "run": 2}


def test_a_folder_of_something_else_is_refused_and_kept(workdir):
    workdir.path.mkdir()
    (workdir.path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="new folder or the folder of a run"):
        workdir.claim(default(), restart=False)
    assert (workdir.path / "thesis.tex").read_text() == "years of work"


def test_a_folder_without_settings_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"without config\.json"):
        Workdir(tmp_path).read_config()


def test_settings_that_are_not_json_are_reported(workdir):
    workdir.claim(default(), restart=False)
    workdir.config_path.write_text('{"seed": ')
    with pytest.raises(InputError, match="readable JSON"):
        workdir.read_config()


def test_resuming_forgets_later_records_and_the_torn_last_line(workdir):
    workdir.claim(default(), restart=False)
    for step in (10, 20, 30):
        workdir.append_metrics({"step": step})
    with workdir.metrics_path.open("a") as file:
        file.write('{"step": 4')
    workdir.drop_metrics_after(20)
    lines = workdir.metrics_path.read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]


def test_the_test_split_has_the_plain_name(workdir):
    assert workdir.evaluation_path("test").name == "evaluation.json"
    assert workdir.evaluation_path("validation").name == "evaluation_validation.json"


def test_one_training_at_a_time_is_in_a_folder(workdir):
    workdir.claim(default(), restart=False)
    code = (
        "import pathlib; from hne_tf.training.workdir import Workdir\n"
        f"with Workdir(pathlib.Path({str(workdir.path)!r})).in_use(): print('mine')"
    )

    def another():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    with workdir.in_use():
        assert "in use by one training at a time" in another().stderr
        with pytest.raises(InputError, match="in use by one training"):
            workdir.claim(default(), restart=True)
    assert another().stdout == "mine\n"


def test_a_killed_training_holds_no_folder(workdir):
    workdir.claim(default(), restart=False)
    code = (
        "import pathlib, time; from hne_tf.training.workdir import Workdir\n"
        f"with Workdir(pathlib.Path({str(workdir.path)!r})).in_use():\n"
        "    print('mine', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as killed:
        assert killed.stdout.readline() == b"mine\n"
        killed.kill()
        killed.wait()
    with workdir.in_use():
        pass


def test_a_folder_of_a_run_that_was_killed_at_once_is_new(workdir):
    workdir.checkpoints.mkdir(parents=True)
    workdir.claim(default(), restart=False)
    assert workdir.config_path.exists()
