import dataclasses
import json

import keras
import numpy as np
import pytest

from hne_tf.errors import InputError
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import Architecture, Convolution, ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.folding import deployed
from hne_tf.models.grouped_ensemble import GroupedEnsemble
from hne_tf.models.layers import FACTORIES
from hne_tf.models.layers.quantized import QuantizedLayers
from hne_tf.models.layers.training import TrainingLayers
from hne_tf.tree import Tree

IMAGES = ImageSpec((6, 6, 3), ("ant", "bee"), (120.0,) * 3, (60.0,) * 3)


@keras.saving.register_keras_serializable("test_serialisation")
@dataclasses.dataclass(frozen=True)
class Plain(Architecture):
    """A convolution per block."""

    widths: tuple[int, ...]

    @property
    def blocks(self):
        return len(self.widths)

    def block(self, layers, block, x):
        return layers.conv(x, "conv", Convolution(self.widths[block], 3))


@dataclasses.dataclass(frozen=True)
class Unregistered(Plain):
    """Keras does not know it."""


@keras.saving.register_keras_serializable("test_serialisation")
@dataclasses.dataclass(frozen=True)
class Whole(Plain):
    """Can only be computed as it is."""

    foldable = False
    groupable = False


@keras.saving.register_keras_serializable("test_serialisation")
@dataclasses.dataclass(frozen=True)
class WideLayers(TrainingLayers):
    """A factory of the user's own."""

    factor: int = 2

    def conv(self, x, name, convolution):
        wide = dataclasses.replace(convolution, filters=self.factor * convolution.filters)
        return super().conv(x, name, wide)


def test_own_architectures_and_factories_go_through_keras_files(tmp_path):
    model = TreeEnsemble(Plain((2, 4)), Tree((1, 2)), IMAGES, WideLayers(factor=3))
    assert model.node_models[1][0].get_layer("conv").filters == 12
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    # Equal, so tuples are tuples again.
    assert (loaded.architecture, loaded.factory) == (model.architecture, model.factory)
    images = np.random.default_rng(0).integers(0, 256, (3, *IMAGES.shape), np.uint8)
    np.testing.assert_array_equal(loaded(images), model(images))


def test_an_unregistered_architecture_is_loaded_by_custom_objects_only(tmp_path):
    path = tmp_path / "model.keras"
    TreeEnsemble(Unregistered((2,)), Tree((2,)), IMAGES).save(path)
    with pytest.raises(InputError, match=r"must be registered .* got 'Unregistered'"):
        keras.models.load_model(path)
    loaded = keras.models.load_model(path, custom_objects={"Unregistered": Unregistered})
    assert loaded.architecture == Unregistered((2,))


def test_names_without_a_package_are_ours_in_older_files():
    model = TreeEnsemble(
        ResNet("basic", (4, 4), (1, 1), (1, 1)), Tree((1, 2)), IMAGES, QuantizedLayers()
    )
    config = json.loads(json.dumps(model.get_config()))
    assert config["architecture"] == "hne_tf>ResNet"
    older = {**config, "architecture": "ResNet", "factory": "QuantizedLayers"}
    loaded = TreeEnsemble.from_config(older)
    assert (loaded.architecture, loaded.factory) == (model.architecture, model.factory)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_factory_is_found_by_its_name(name):
    config = TreeEnsemble(Plain((2,)), Tree((1,)), IMAGES).get_config()
    settings = {}
    kind = GroupedEnsemble if "Grouped" in name else TreeEnsemble
    for registered in (name, f"hne_tf>{name}"):
        model = kind.from_config({**config, "factory": registered, "factory_settings": settings})
        assert type(model.factory).__name__ == name


def test_what_an_architecture_cannot_be_is_respected():
    model = TreeEnsemble(Whole((2, 2)), Tree((1, 2)), IMAGES)
    assert deployed(model) is model
    assert weights.read(deployed(TreeEnsemble(Plain((2, 2)), Tree((1, 2)), IMAGES)))
    with pytest.raises(InputError, match="groupable architecture only, got Whole"):
        GroupedEnsemble(Whole((2, 2)), Tree((1, 2)), IMAGES)
