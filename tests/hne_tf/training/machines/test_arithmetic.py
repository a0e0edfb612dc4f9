import dataclasses
import json

import pytest

from hne_tf.errors import InputError
from hne_tf.files import write_json
from hne_tf.training.machines import arithmetic
from hne_tf.training.machines.arithmetic import Arithmetic
from hne_tf.training.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
    return Workdir(tmp_path)


def record(workdir, **changes):
    other = dataclasses.replace(Arithmetic.current(), **changes)
    write_json(workdir.arithmetic_path, dataclasses.asdict(other))
    return other


def test_a_new_run_computes_with_onednn_and_others_as_they_began(workdir):
    assert arithmetic.onednn_of(workdir) is True
    # A run that is older than the record had TensorFlow's own choice.
    workdir.append_metrics({"step": 1})
    assert arithmetic.onednn_of(workdir) is None
    for onednn in (False, True):
        record(workdir, onednn=onednn)
        assert arithmetic.onednn_of(workdir) is onednn
    record(workdir, onednn=False)
    assert arithmetic.onednn_of(workdir, restart=True) is True


def test_the_arithmetic_is_recorded_and_a_change_reported(workdir):
    reports = []
    arithmetic.keep(workdir, reports.append)
    arithmetic.keep(workdir, reports.append)
    assert reports == []
    current = Arithmetic.current()
    assert json.loads(workdir.arithmetic_path.read_text()) == dataclasses.asdict(current)
    before = record(workdir, operation_threads=current.operation_threads + 1)
    arithmetic.keep(workdir, reports.append)
    arithmetic.keep(workdir, reports.append)
    (line,) = reports
    assert f"computed with {before} and goes on with {current}" in line


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"onednn": true, "operation_threads": "many"}'])
def test_a_damaged_record_is_reported(workdir, text):
    workdir.arithmetic_path.write_text(text)
    with pytest.raises(InputError, match=r"arithmetic\.json"):
        arithmetic.onednn_of(workdir)
