import dataclasses
import re

import keras
import pytest

from hne_tf import objectives
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.metrics import PerSize
from hne_tf.models.architectures import (
    Architecture,
    Convolution,
    MobileNetV2,
    MSDNet,
    ResNet,
)
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers.fused import FusedGroupedLayers, FusedTrainingLayers
from hne_tf.models.layers.grouped import GroupedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.training import build
from hne_tf.training.config import default


def test_a_preset_is_the_network_unless_settings_replace_parts_of_it():
    config = default()
    config.model.preset = "large"
    assert build.architecture(config) == ResNet.presets["large"]
    config.model.resnet.widths = (8,) * 5
    config.model.resnet.unit = "basic"
    assert build.architecture(config) == dataclasses.replace(
        ResNet.presets["large"], widths=(8,) * 5, unit="basic"
    )


def test_the_architecture_is_chosen_with_its_own_presets_and_settings():
    config = default()
    config.model.architecture = "mobilenet_v2"
    assert build.architecture(config) == MobileNetV2.presets["small"]
    config.model.preset = "large"
    config.model.mobilenet_v2.update(width_multiplier=0.75, units=(1,) * 7, stem_stride=1)
    assert build.architecture(config) == MobileNetV2(0.75, units=(1,) * 7, stem_stride=1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("independent", objectives.Independent),
        ("subtree", objectives.Subtree),
        ("codistillation", objectives.CoDistillation),
        ("hierarchical", objectives.HierarchicalDistillation),
        ("assistants", objectives.TeacherAssistants),
        ("boosting", objectives.Boosting),
    ],
)
def test_every_objective_has_its_settings(name, kind):
    config = default()
    average = "sum" if name == "boosting" else "probabilities"
    config.objective.update(name=name, average=average)
    distils = name in ("codistillation", "hierarchical", "assistants")
    if distils:
        config.objective[name].update(
            alpha=0.25, temperature=3.0, combine="traded", ramp_epochs=1.5
        )
    objective = build.objective(config, steps_per_epoch=10.0)
    assert type(objective) is kind
    wanted = {
        "alpha": 0.25,
        "temperature": 3.0,
        "combine": "traded",
        "ramp_steps": 15,
        "average": average,
        "sizes": (1, 2, 4, 8, 16),
    }
    settings = objective.get_config()
    assert {key: settings[key] for key in wanted.keys() & settings.keys()}.items() <= wanted.items()
    assert ("sizes" in settings) == (name in ("subtree", "hierarchical", "assistants"))
    assert ("alpha" in settings) == distils


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_settings_of_objectives_are_the_defaults_of_their_classes(name):
    built = build.objective(default_objective(name), steps_per_epoch=10.0)
    known = built.get_config()
    for setting, value in objectives.OBJECTIVES[name].settings.items():
        # Models are no settings of a loss that is saved.
        if setting == "models":
            continue
        assert known[setting.replace("_epochs", "_steps")] == value
    defaults = type(built)().get_config()
    assert {**known, "sizes": None} == {**defaults, "sizes": None}


def teacher():
    return keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]
    )


def default_objective(name):
    config = default()
    config.objective.name = name
    if name == "boosting":
        config.objective.average = "sum"
    if name == "outside":
        config.objective.outside.models = (f"{__name__}:teacher",)
    return config


def test_boosting_adds_leaves_up():
    config = default()
    config.objective.name = "boosting"
    with pytest.raises(InputError, match=r"average must be sum for boosting, got 'logits'"):
        build.objective(config, 1.0)


@pytest.mark.parametrize("grouped", [False, True])
def test_layers_get_the_gradients_of_branches(grouped):
    config = default()
    assert build.training_layers(config, grouped=grouped).branch_gradients == "sum"
    config.optimizer.branch_gradients = "mean"
    assert build.training_layers(config, grouped=grouped).branch_gradients == "mean"
    config.optimizer.branch_gradients = "median"
    with pytest.raises(InputError, match="branch_gradients must be one of sum, mean, got 'median'"):
        build.training_layers(config, grouped=grouped)


@pytest.mark.parametrize(("epochs", "steps"), [(0.0, 0), (0.001, 1), (2.5, 25)])
def test_a_ramp_in_epochs_is_one_in_steps(epochs, steps):
    config = default()
    config.objective.hierarchical.ramp_epochs = epochs
    assert build.objective(config, 10.0).get_config()["ramp_steps"] == steps
    # At the end of the run nothing ramps any more.
    assert build.objective(config, None).get_config()["ramp_steps"] == 0
    config.objective.hierarchical.ramp_epochs = -1.0
    with pytest.raises(InputError, match=r"ramp_epochs must be 0 or more, got -1\.0"):
        build.objective(config, 10.0)


def test_synchronised_norms_are_the_default_on_several_replicas_only():
    config = default()
    assert not build.training_layers(config, replicas=1).synchronized
    assert build.training_layers(config, replicas=2).synchronized
    config.distribution.synchronized_norm = "off"
    assert not build.training_layers(config, replicas=2).synchronized
    assert isinstance(build.training_layers(config, replicas=2), FusedTrainingLayers)
    config.distribution.synchronized_norm = "yes"
    with pytest.raises(InputError, match="auto, on or off, got 'yes'"):
        build.training_layers(config)


def test_norms_are_fused_unless_they_are_synchronised_or_told_not_to_be():
    config = default()
    assert isinstance(build.training_layers(config), FusedTrainingLayers)
    assert type(build.training_layers(config, replicas=2)) is TrainingLayers
    config.training.fused_norm = "off"
    assert type(build.training_layers(config)) is TrainingLayers
    config.training.fused_norm = "on"
    with pytest.raises(InputError, match="cannot be synchronised"):
        build.training_layers(config, replicas=2)


@pytest.mark.parametrize(("architecture", "kind"), [("multi_exit", ResNet), ("msdnet", MSDNet)])
def test_networks_with_exits_have_one_after_each_block(architecture, kind):
    config = default()
    config.model.architecture = architecture
    config.model[architecture].units = (2, 1, 2)
    if architecture == "multi_exit":
        config.model.multi_exit.update(widths=(4, 4, 8), strides=(1, 2, 1))
    config.objective.average = "last"
    network = build.architecture(config)
    assert isinstance(network, kind)
    assert network.units == (2, 1, 2)
    assert build.tree(config) == Exits(3)
    assert build.objective(config, 1.0).get_config()["sizes"] == (1, 2, 3)


def test_settings_of_a_dense_network_replace_the_presets():
    config = default()
    config.model.architecture = "msdnet"
    config.model.msdnet.update(growth=4, bottlenecks=(0, 0, 0), head_width=32)
    small = dataclasses.replace(MSDNet.presets["small"], growth=4, head_width=32)
    assert build.architecture(config) == dataclasses.replace(small, bottlenecks=(0, 0, 0))


def test_settings_of_another_architecture_make_no_difference():
    config = default()
    config.model.mobilenet_v2.units = (9,) * 7
    assert build.architecture(config) == ResNet.presets["small"]


def test_settings_of_one_s_own_are_refused_for_ours():
    config = default()
    config.model.settings.depth = 3
    with pytest.raises(InputError, match=r"empty for resnet, .* got \{'depth': 3\}"):
        build.architecture(config)
    config.objective.settings.margin = 0.5
    with pytest.raises(InputError, match="empty for hierarchical"):
        build.objective(config, 1.0)


@dataclasses.dataclass(frozen=True)
class Chain(Architecture):
    """A network of the user's own: a convolution per block."""

    widths: tuple[int, ...]
    kernel_size: int = 3
    groupable = False

    @property
    def blocks(self):
        return len(self.widths)

    def block(self, layers, block, x):
        return layers.conv(x, "conv", Convolution(self.widths[block], self.kernel_size))


class Preset(Chain):
    """One with presets."""


Preset.presets = {"small": Preset((4, 4)), "large": Preset((8, 8), kernel_size=5)}


class Margin(keras.losses.Loss):
    """An objective of the user's own."""

    def __init__(self, margin=0.0, warm_steps=0, sizes=None, name="margin"):
        super().__init__(name=name)
        self.settings = (margin, warm_steps, sizes)


def own(architecture="Chain", **settings):
    config = default()
    config.model.update(architecture=f"{__name__}:{architecture}", branching=(1, 2))
    config.model.settings.update(settings)
    return config


def test_an_architecture_of_one_s_own_is_built_from_its_settings():
    assert build.architecture(own(widths=(4, 8))) == Chain((4, 8))
    assert build.architecture(own(widths=(4, 8), kernel_size=1)) == Chain((4, 8), 1)
    with pytest.raises(InputError, match=r"must have widths for .*:Chain"):
        build.architecture(own())
    with pytest.raises(InputError, match="some of widths, kernel_size, got depth"):
        build.architecture(own(widths=(4, 8), depth=3))


def test_an_architecture_of_one_s_own_may_have_presets():
    config = own("Preset", widths=(2, 2))
    config.model.preset = "large"
    assert build.architecture(config) == Preset((2, 2), 5)
    config.model.preset = "huge"
    with pytest.raises(InputError, match="one of small, large, got 'huge'"):
        build.architecture(config)


def test_what_cannot_be_grouped_is_trained_branched_on_an_accelerator():
    assert not build.is_grouped(own(widths=(4, 8)), accelerated=True)


def test_an_objective_of_one_s_own_is_built_from_its_settings():
    config = default()
    config.objective.name = f"{__name__}:Margin"
    config.objective.settings.update(margin=0.25, warm_epochs=2.0)
    assert build.objective(config, 10.0).settings == (0.25, 20, (1, 2, 4, 8, 16))
    config.objective.settings.mragin = 0.5
    with pytest.raises(InputError, match="some of margin, warm_steps, sizes, name, got mragin"):
        build.objective(config, 10.0)


class Confidence(PerSize):
    """A metric of the user's own."""


def test_metrics_of_one_s_own_get_the_sizes_and_the_average():
    config = default()
    assert build.metrics(config) == []
    config.training.metrics = (f"{__name__}:Confidence",)
    config.objective.average = "probabilities"
    (metric,) = build.metrics(config)
    assert metric.name == "confidence"
    assert metric.get_config()["sizes"] == (1, 2, 4, 8, 16)
    assert metric.get_config()["average"] == "probabilities"
    config.training.metrics = (f"{__name__}:Margin",)
    with pytest.raises(InputError, match=r"subclasses of keras\.metrics\.Metric, got .*:Margin"):
        build.metrics(config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("focal", r"one of independent, .*, hierarchical, .* or an import path .* got 'focal'"),
        ("no_such_module:Loss", "that can be imported, got 'no_such_module:Loss'"),
        ("fractions:Fraction", r"subclass of keras\.losses\.Loss, got 'fractions:Fraction'"),
    ],
)
def test_what_is_no_objective_is_named(name, message):
    config = default()
    config.objective.name = name
    with pytest.raises(InputError, match=message):
        build.objective(config, 1.0)


def test_unknown_architecture_is_named():
    config = default()
    config.model.architecture = "vgg"
    names = "resnet, .*, msdnet or an import path such as my_module:MyNetwork"
    with pytest.raises(InputError, match=f"one of {names}, got 'vgg'"):
        build.architecture(config)


def test_the_leaves_of_a_tree_do_not_answer_alone():
    config = default()
    config.objective.average = "last"
    with pytest.raises(InputError, match=r"the last leaf alone in a tree, .* got 'last'"):
        build.objective(config, 1.0)


def test_the_form_follows_the_device_unless_it_is_set():
    config = default()
    assert build.is_grouped(config, accelerated=True)
    assert not build.is_grouped(config, accelerated=False)
    config.training.factory = "branched"
    assert not build.is_grouped(config, accelerated=True)
    config.training.factory = "grouped"
    assert build.is_grouped(config, accelerated=False)
    config.training.factory = "split"
    with pytest.raises(InputError, match="auto, branched, grouped, got 'split'"):
        build.is_grouped(config, accelerated=False)


@pytest.mark.parametrize("accelerated", [True, False])
def test_both_forms_have_the_config_s_layers(tiny_config, accelerated):
    config = tiny_config(training__factory="grouped", optimizer__norm_momentum=0.75)
    images = ImageSpec((8, 8, 1), ("ant", "bee"), (0.0,), (1.0,))
    grouped = build.training_model(config, images, accelerated)
    assert isinstance(grouped, GroupedEnsemble)
    assert grouped.factory == FusedGroupedLayers(5e-4, 0.75, split=not accelerated)
    unfused = build.training_model(config, images, accelerated, replicas=2).factory
    assert unfused == GroupedLayers(5e-4, 0.75, synchronized=True, split=not accelerated)
    config.training.factory = "branched"
    branched = build.training_model(config, images, accelerated)
    assert isinstance(branched, TreeEnsemble)
    assert branched.factory == build.training_layers(config)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_labels_are_smoothed_for_every_objective(name):
    config = default_objective(name)
    config.objective.label_smoothing = 0.2
    assert build.objective(config, 10.0).get_config()["label_smoothing"] == 0.2
    config.objective.label_smoothing = 1.0
    with pytest.raises(InputError, match=r"label_smoothing must lie in \[0, 1\), got 1\.0"):
        build.objective(config, 10.0)


class Plain(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return y_pred[:, 0, 0]


def test_an_objective_without_smoothing_refuses_it():
    config = default_objective(f"{__name__}:Plain")
    build.objective(config, 10.0)
    config.objective.label_smoothing = 0.1
    with pytest.raises(InputError, match=r"must be 0 for .*:Plain, which does not take it"):
        build.objective(config, 10.0)


@pytest.mark.parametrize("name", ["independent", "codistillation", "hierarchical", "assistants"])
def test_leaves_learn_from_views(name):
    config = default_objective(name)
    assert build.objective(config, 10.0).get_config()["views"] == 1
    config.data.views = ("", "mix=cutmix")
    assert build.objective(config, 10.0).get_config()["views"] == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective.name": "subtree"}, "data.views must be empty for subtree"),
        ({"training.accumulate_steps": 2}, "accumulate_steps must be 1 with data.views"),
        ({"data.views": ("",) * 17}, "at most as many as the 16 leaves, got 17"),
    ],
)
def test_views_that_cannot_be_are_refused(fields, message):
    config = default_objective("hierarchical")
    config.data.views = ("", "mix=cutmix")
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match=re.escape(message)):
        build.objective(config, 10.0)


def test_views_divide_the_batch_of_each_device():
    config = default()
    config.data.views = ("", "", "")
    config.training.batch_size = 12
    assert build.batch_parts(config, replicas=2) == 1
    with pytest.raises(InputError, match=r"3 data\.views on each of 8 devices, got 12"):
        build.batch_parts(config, replicas=8)
