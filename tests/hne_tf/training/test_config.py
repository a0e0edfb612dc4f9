import importlib
import json
import pathlib
import random
import subprocess
import sys

import ml_collections
import pytest

from hne_tf.errors import InputError
from hne_tf.sweeps import plan
from hne_tf.training import config as configs


def test_the_digest_depends_on_settings_but_not_on_their_order_or_on_circumstances():
    one = configs.default()
    fields = list(one.to_dict().items())
    random.Random(0).shuffle(fields)
    shuffled = ml_collections.ConfigDict(dict(fields))
    shuffled.data.data_dir = "/elsewhere"
    shuffled.training.factory = "grouped"
    shuffled.distribution.operation_threads = 3
    assert configs.digest(one) == configs.digest(shuffled)
    shuffled.objective.hierarchical.alpha = 0.25
    assert configs.digest(one) != configs.digest(shuffled)


def test_differences_are_named_with_both_values():
    one, other = configs.default(), configs.default()
    other.seed = 3
    other.model.branching = (1, 2)
    assert configs.differences(one, other) == [
        ("model.branching", ((1, 2, 2, 2, 2), (1, 2))),
        ("seed", (0, 3)),
    ]


# Settings and digests of runs and sweeps from before sections had sub-sections.
FLAT = json.loads(pathlib.Path(__file__).with_name("flat_configs.json").read_text())


def test_settings_load_without_tensorflow():
    code = "import hne_tf.training.config, sys; print({'keras', 'tensorflow'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


@pytest.mark.parametrize("run", FLAT["configs"], ids=lambda run: run["name"])
def test_flat_settings_are_read_and_keep_their_digest(run):
    config = configs.from_json(run["config"])
    assert configs.digest(config) == run["digest"]
    again = configs.from_json(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert configs.digest(again) == run["digest"]


def test_a_new_setting_changes_the_digest_where_it_is_not_at_its_default(monkeypatch):
    newer = configs.default()
    newer.training.new_setting = 3
    monkeypatch.setattr(configs, "default", lambda: newer)
    for value, same in ((3, True), (4, False)):
        config = ml_collections.ConfigDict(newer.to_dict())
        config.training.new_setting = value
        assert (configs.digest(config) == FLAT["configs"][0]["digest"]) is same


def test_flat_settings_go_to_what_they_chose():
    runs = {run["name"]: configs.from_json(run["config"]) for run in FLAT["configs"]}
    default = configs.default()
    assert runs["defaults"].to_dict() == default.to_dict()
    assert runs["cifar10_cpu"].model.resnet.widths == (16, 16, 32, 32)
    assert runs["cifar10_cpu"].objective.hierarchical.ramp_epochs == 4.0
    assert runs["exits"].model.multi_exit.units == (2, 1, 2)
    assert runs["exits"].model.resnet.to_dict() == default.model.resnet.to_dict()
    assert runs["msdnet"].model.msdnet.bottlenecks == (0, 0, 0)
    assert runs["msdnet"].objective.codistillation.combine == "traded"


@pytest.mark.parametrize("name", ["digits", "imagenet_small"])
def test_configs_have_the_digests_that_they_had(name):
    (digest,) = (run["digest"] for run in FLAT["configs"] if run["name"] == name)
    assert configs.digest(importlib.import_module(f"configs.{name}").get_config()) == digest


@pytest.mark.parametrize("name", FLAT["sweeps"])
def test_runs_of_sweeps_have_the_digests_that_they_had(name):
    sweep = plan.parse(importlib.import_module(f"configs.sweeps.{name}").get_config())
    digests = {run.group: run.digest for run in sweep.runs if run.seed == 0}
    assert FLAT["sweeps"][name].items() <= digests.items()


def test_only_what_is_chosen_counts():
    one, other = configs.default(), configs.default()
    other.model.msdnet.growth = 12
    other.objective.codistillation.alpha = 1.0
    assert configs.differences(one, other) == []
    assert configs.digest(one) == configs.digest(other)
    other.objective.name = "codistillation"
    assert configs.differences(one, other) == [
        ("objective.codistillation.alpha", (0.5, 1.0)),
        ("objective.name", ("hierarchical", "codistillation")),
    ]


def test_settings_of_one_s_own_count():
    one = configs.default()
    one.model.architecture = "my_module:MyNetwork"
    other = configs.copy_of(one)
    other.model.settings.widths = (4, 8)
    assert configs.differences(one, other) == [("model.settings.widths", (None, (4, 8)))]
    assert configs.digest(one) != configs.digest(other)
    read = configs.from_json(json.loads(json.dumps(other.to_dict())))
    assert read.to_dict() == other.to_dict()


def test_a_copy_knows_the_type_of_what_is_not_set():
    one = configs.default()
    copy = configs.copy_of(ml_collections.FrozenConfigDict(one))
    copy.model.resnet.widths = (4, 8)
    assert one.model.resnet.widths is None
    with pytest.raises(TypeError):
        copy.model.resnet.stem_width = "wide"


def test_settings_of_a_choice():
    model = configs.default().model
    assert configs.settings_of(model, "resnet") is model.resnet
    assert configs.settings_of(model, "my_module:MyNetwork") is model.settings
    model.settings.depth = 3
    with pytest.raises(InputError, match="empty for resnet"):
        configs.settings_of(model, "resnet")


def test_fields_that_there_are_not_are_refused():
    configs.check(configs.default())
    flat = configs.default()
    flat.model.widths = (4, 8)
    flat.trianing = ml_collections.ConfigDict({"epochs": 3})
    with pytest.raises(InputError, match=r"got model\.widths, trianing\.epochs"):
        configs.check(flat)
    own = configs.default()
    own.model.settings.widths = (4, 8)
    own.objective.settings = {"margin": 0.5}
    configs.check(own)
    short = configs.default()
    del short.model.preset
    with pytest.raises(InputError, match=r"got none of the name model\.preset"):
        configs.check(short)
