import dataclasses

import pytest

from hne_tf import objectives
from hne_tf.errors import InputError
from hne_tf.exits import Exits
from hne_tf.image_spec import ImageSpec
from hne_tf.models.architectures import MobileNetV2, MSDNet, ResNet
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
    config.model.widths = (8,) * 5
    config.model.unit = "basic"
    assert build.architecture(config) == dataclasses.replace(
        ResNet.presets["large"], widths=(8,) * 5, unit="basic"
    )


def test_the_architecture_is_chosen_with_its_own_presets_and_settings():
    config = default()
    config.model.architecture = "mobilenet_v2"
    assert build.architecture(config) == MobileNetV2.presets["small"]
    config.model.update(preset="large", width_multiplier=0.75, units=(1,) * 7, stem_stride=1)
    assert build.architecture(config) == MobileNetV2(0.75, units=(1,) * 7, stem_stride=1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("independent", objectives.Independent),
        ("subtree", objectives.Subtree),
        ("codistillation", objectives.CoDistillation),
        ("hierarchical", objectives.HierarchicalDistillation),
    ],
)
def test_every_objective_has_its_settings(name, kind):
    config = default()
    config.objective.update(
        name=name, alpha=0.25, temperature=3.0, combine="traded", average="probabilities"
    )
    objective = build.objective(config, steps_per_epoch=10.0, iterations=0)
    assert type(objective) is kind
    wanted = {
        "alpha": 0.25,
        "temperature": 3.0,
        "combine": "traded",
        "average": "probabilities",
        "sizes": (1, 2, 4, 8, 16),
    }
    settings = objective.get_config()
    assert {key: settings[key] for key in wanted.keys() & settings.keys()}.items() <= wanted.items()
    assert ("sizes" in settings) == (name in ("subtree", "hierarchical"))
    assert ("alpha" in settings) == (name in ("codistillation", "hierarchical"))


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
    config.model.units = (2, 1, 2)
    if architecture == "multi_exit":
        config.model.update(widths=(4, 4, 8), strides=(1, 2, 1))
    config.objective.average = "last"
    network = build.architecture(config)
    assert isinstance(network, kind)
    assert network.units == (2, 1, 2)
    assert build.tree(config) == Exits(3)
    assert build.objective(config, 1.0, 0).get_config()["sizes"] == (1, 2, 3)


def test_settings_of_a_dense_network_replace_the_presets():
    config = default()
    config.model.update(architecture="msdnet", growth=4, bottlenecks=(0, 0, 0), head_width=32)
    small = dataclasses.replace(MSDNet.presets["small"], growth=4, head_width=32)
    assert build.architecture(config) == dataclasses.replace(small, bottlenecks=(0, 0, 0))


@pytest.mark.parametrize(
    ("architecture", "setting", "value", "unset"),
    [
        ("resnet", "growth", 12, "0"),
        ("resnet", "stem_stride", -1, "0"),
        ("multi_exit", "width_multiplier", 0.5, "0.0"),
        ("mobilenet_v2", "widths", (8, 8), "()"),
        ("msdnet", "unit", "basic", "''"),
    ],
)
def test_settings_of_another_architecture_are_refused(architecture, setting, value, unset):
    config = default()
    config.model.update({"architecture": architecture, setting: value})
    with pytest.raises(InputError) as error:
        build.architecture(config)
    assert f"model.{setting} must be {unset} for {architecture}, whose" in str(error.value)
    assert str(error.value).endswith(f"got {value!r}")


def test_unknown_architecture_is_named():
    config = default()
    config.model.architecture = "vgg"
    names = "resnet, mobilenet_v2, multi_exit, msdnet"
    with pytest.raises(InputError, match=f"one of {names}, got 'vgg'"):
        build.architecture(config)


def test_the_leaves_of_a_tree_do_not_answer_alone():
    config = default()
    config.objective.average = "last"
    with pytest.raises(InputError, match=r"logits or probabilities for a tree, .* got 'last'"):
        build.objective(config, 1.0, 0)


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
