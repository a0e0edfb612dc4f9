import dataclasses
import subprocess
import sys

import pytest

from hne_tf.errors import InputError
from hne_tf.models import architectures
from hne_tf.models.architectures import (
    Architecture,
    KerasFunctional,
    MobileNetV2,
    MSDNet,
    ResNet,
)


@dataclasses.dataclass(frozen=True)
class Chain(Architecture):
    """A network that answers after each block."""

    blocks: int = 2
    exits = True

    def block(self, layers, block, x):
        return x


def test_architectures_load_without_keras():
    code = "import hne_tf.models.architectures, sys; print('keras' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


def test_a_name_stands_for_a_class_and_the_shape_of_its_tree():
    found = {name: architectures.find(name) for name in architectures.ARCHITECTURES}
    assert {name: (entry.kind, entry.exits) for name, entry in found.items()} == {
        "resnet": (ResNet, False),
        "mobilenet_v2": (MobileNetV2, False),
        "multi_exit": (ResNet, True),
        "msdnet": (MSDNet, True),
        "keras": (KerasFunctional, False),
    }
    with pytest.raises(AttributeError, match="no attribute 'VGG'"):
        _ = architectures.VGG


def test_settings_have_the_types_of_the_presets():
    assert architectures.find("resnet").settings == {
        "unit": str,
        "widths": tuple,
        "units": tuple,
        "strides": tuple,
        "stem_width": int,
    }


def test_an_import_path_stands_for_a_class_of_the_user_s_own():
    entry = architectures.find(f"{__name__}:Chain")
    assert (entry.kind, entry.exits) == (Chain, True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", r"one of resnet, .*, keras, msdnet or an import path .* got 'vgg'"),
        ("no_such_module:Net", "a module that can be imported, got 'no_such_module:Net'"),
        (":Net", "a module that can be imported, got ':Net'"),
        ("dataclasses:Net", "a class of dataclasses, got 'dataclasses:Net'"),
        ("dataclasses:dataclass", "a class of dataclasses"),
        ("fractions:Fraction", "a subclass of Architecture, got 'fractions:Fraction'"),
    ],
)
def test_what_is_no_architecture_is_named(name, message):
    with pytest.raises(InputError, match=message):
        architectures.find(name)
