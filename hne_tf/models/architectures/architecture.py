"""What an architecture is. Imports no Keras."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from hne_tf.models.layers.factory import LayerFactory

# What a block gives to the next: a tensor, or a list of one per scale.
Activation = Any


class Architecture(abc.ABC):
    """A network cut into blocks; a subclass is a frozen dataclass of plain settings.

    A subclass outside this package is registered with Keras, so that `.keras` files
    hold it: `@keras.saving.register_keras_serializable("my_package")`.

    Attributes:
      presets: settings by the name that a config gives them.
      exits: whether a config that names the class by its import path makes a single
        network of it, with a classifier after each block, instead of a tree.
      foldable: whether batch norms can be folded into convolutions.
      groupable: whether a layer can compute all nodes of a block at once.
      quantizable: whether the layers can be rounded to 8 bits.
      brings_layers: whether the layers are its own. Any factory then gives the same
        weights; it builds only what is added, and keeps sums apart where that matters.

    A network that is written in the verbs of a `LayerFactory` alone brings no layers,
    and all else is true of it.
    """

    presets: ClassVar[Mapping[str, Architecture]] = {}
    exits: ClassVar[bool] = False
    foldable: ClassVar[bool] = True
    groupable: ClassVar[bool] = True
    quantizable: ClassVar[bool] = True
    brings_layers: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def blocks(self) -> int:
        """Number of blocks, which the tree must match."""

    @abc.abstractmethod
    def block(self, layers: LayerFactory, block: int, x: Activation) -> Activation:
        """Applies block number `block` to the images or to what the block before gives."""

    def head(self, layers: LayerFactory, x: Activation, classes: int) -> Any:
        """Logits `[batch, classes]` of what a block gives."""
        return layers.head(layers.pool(x, "pool"), "head", classes)

    @property
    def norms(self) -> Mapping[str, str]:
        """Norms among layers of its own that are folded, by the name of the layer before."""
        return {}

    def folded(self) -> Architecture:
        """The network without `norms`."""
        return self

    def get_config(self) -> dict[str, Any]:
        """The settings, which `from_config` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """The architecture of some settings; JSON has lists where settings have tuples."""
        return cls(**{name: _with_tuples(value) for name, value in config.items()})


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
