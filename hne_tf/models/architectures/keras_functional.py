"""A functional Keras model of the user's own, cut into the blocks of a tree."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras

from hne_tf.errors import InputError
from hne_tf.models.architectures.architecture import Architecture
from hne_tf.models.functional import classifier as classifiers
from hne_tf.models.functional import cuts, depthwise, graph, multiply_adds, norms
from hne_tf.models.layers.factory import LayerFactory

# A block's cost as a multiple of the mean that is told.
_MOST_UNEVEN = 2.0


@dataclasses.dataclass(frozen=True)
class KerasFunctional(Architecture):
    """A network whose blocks are clones of parts of a Keras model, with weights of their own.

    Layers keep their names, settings and dtype policies; a layer factory gives only the
    classifier that is added and what comes between sums and their terms. Rooms that would
    group or quantise the layers refuse them.

    Attributes:
      source: the model as Keras serialises it, without weights.
      cut_at: the layer that each block but the last one ends with.
      has_classifier: whether the model gives logits; a leaf otherwise has pooling and a
        classifier of its own.
    """

    source: Mapping[str, Any] = dataclasses.field(repr=False)
    cut_at: tuple[str, ...]
    has_classifier: bool = True
    groupable: ClassVar[bool] = False
    quantizable: ClassVar[bool] = False
    brings_layers: ClassVar[bool] = True

    @classmethod
    def of(
        cls,
        model: keras.Model,
        image_shape: Sequence[int],
        blocks: int,
        cut_at: Sequence[str] | None = None,
        classifier: str = "keep",
    ) -> KerasFunctional:
        """Cuts a model.

        Args:
          model: functional, or a built `Sequential`; it stays as it is.
          image_shape: `(height, width, channels)`.
          blocks: number of blocks.
          cut_at: a layer that each block but the last one ends with; by default blocks
            cost about the same, see `cuts.choose`.
          classifier: see `classifier.prepared`.

        Raises:
          InputError: for a model that is not functional, has several inputs or outputs,
            cannot be saved by Keras or cannot be cut this way.
        """
        model = graph.functional(model)
        _check_sharing(model)
        x = graph.for_images(model, image_shape)
        try:
            prepared = classifiers.prepared(model, x, classifier)
            source = serialised(depthwise.replaced(prepared))
            network = deserialised(source)
        except InputError:
            raise
        except Exception as error:
            _check_layers(model)
            raise InputError(
                f"the model must be one that Keras can clone and save, got {_first_line(error)}"
            ) from error
        if cut_at is None:
            chosen = cuts.choose(network, blocks)
        else:
            if len(cut_at) != blocks - 1:
                raise InputError(
                    f"cut_at must name {blocks - 1} layers for {blocks} blocks, "
                    f"got {', '.join(cut_at) or 'no layer'}"
                )
            chosen = cuts.at(network, cut_at)
        cut = cls(source, tuple(place.name for place in chosen), classifier == "keep")
        # Built already.
        cut.__dict__["network"] = network
        return cut

    @functools.cached_property
    def network(self) -> keras.Model:
        """The model that is cut, with weights that no node has."""
        return deserialised(self.source)

    @functools.cached_property
    def parts(self) -> tuple[keras.Model, ...]:
        """The model of each block, which the nodes are clones of."""
        network = self.network
        between = [place.tensor for place in cuts.at(network, self.cut_at)]
        tensors = [network.inputs[0], *between, network.outputs[0]]
        return tuple(keras.Model(a, b) for a, b in itertools.pairwise(tensors))

    @property
    def blocks(self) -> int:
        return len(self.cut_at) + 1

    @functools.cached_property
    def norms(self) -> Mapping[str, str]:
        """The norms that can be folded, by the name of the layer before, see `norms.pairs`."""
        return {name: norm for part in self.parts for name, norm in norms.pairs(part).items()}

    def folded(self) -> KerasFunctional:
        """The network with biases in the place of the norms that can be folded."""
        if not self.norms:
            return self
        ends = {norm: name for name, norm in self.norms.items()}
        return dataclasses.replace(
            self,
            source=serialised(norms.folded(self.network, self.norms)),
            cut_at=tuple(ends.get(name, name) for name in self.cut_at),
        )

    def unevenness(self) -> str | None:
        """A line on blocks that cost more than twice their mean; None if no block does.

        Raises:
          InputError: for a layer that cannot be counted.
        """
        costs = [multiply_adds.of_model(part) for part in self.parts]
        shares = [cost * len(costs) / (sum(costs) or 1) for cost in costs]
        if max(shares) <= _MOST_UNEVEN:
            return None
        return (
            f"blocks cost {', '.join(f'{share:.2f}' for share in shares)} times their mean: the "
            "model has few places to cut it, so that branches share little or much of it"
        )

    def block(self, layers: LayerFactory, block: int, x: keras.KerasTensor) -> keras.KerasTensor:
        part = self.parts[block]
        if block == 0 and x.shape[1:] != part.inputs[0].shape[1:]:
            raise InputError(
                f"images must have the model's shape {part.inputs[0].shape[1:]}, got {x.shape[1:]}"
            )

        terms = itertools.count()

        def call(operation: keras.Operation, *args: Any, **kwargs: Any) -> Any:
            if graph.is_sum(operation):
                args = keras.tree.map_structure(
                    lambda each: (
                        layers.apart(each, f"{operation.name}.input{next(terms)}")
                        if isinstance(each, keras.KerasTensor)
                        else each
                    ),
                    args,
                )
            return operation(*args, **kwargs)

        return graph.clone(part, x, call_function=call)

    def head(self, layers: LayerFactory, x: keras.KerasTensor, classes: int) -> keras.KerasTensor:
        if self.has_classifier:
            if x.shape[1:] != (classes,):
                raise InputError(
                    f"the model's classifier must give logits of the {classes} classes, "
                    f"got outputs of shape {x.shape[1:]}"
                )
            return x
        if len(x.shape) == 4:
            x = layers.pool(x, self._free("pool"))
        elif len(x.shape) == 3:
            x = keras.layers.GlobalAveragePooling1D(dtype="float32", name=self._free("pool"))(x)
        return layers.head(x, self._free("head"), classes)

    def _free(self, name: str) -> str:
        """A name that no layer of the model has."""
        taken = {operation.name for operation in self.network.operations}
        while name in taken:
            name = f"new_{name}"
        return name

    def get_config(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> KerasFunctional:
        return cls(config["source"], tuple(config["cut_at"]), config["has_classifier"])


def serialised(model: keras.Model) -> dict[str, Any]:
    """A model as Keras serialises it, in plain JSON values."""
    return json.loads(json.dumps(keras.saving.serialize_keras_object(model)))


def deserialised(source: Mapping[str, Any]) -> keras.Model:
    """The model that `serialised` described, with fresh weights."""
    # Keras takes things out of what it is given.
    return keras.saving.deserialize_keras_object(copy.deepcopy(source))


def _check_layers(model: keras.Model) -> None:
    """Raises `InputError` for a layer that Keras cannot save and load by itself."""
    for layer in model.operations:
        try:
            keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
        except Exception as error:
            raise InputError(
                "every layer must be one that Keras can save and load, custom ones registered "
                "(keras.saving.register_keras_serializable), got "
                f"{type(layer).__name__} {layer.name!r}: {_first_line(error)}"
            ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _check_sharing(model: keras.Model) -> None:
    """Raises `InputError` for weights that belong to two layers; clones would part them."""
    owners: dict[int, str] = {}
    for operation in model.operations:
        for weight in getattr(operation, "weights", ()):
            owner = owners.setdefault(id(weight), operation.name)
            if owner != operation.name:
                raise InputError(
                    "weights must belong to one layer of the model, got "
                    f"{weight.path} in both {owner!r} and {operation.name!r}"
                )
