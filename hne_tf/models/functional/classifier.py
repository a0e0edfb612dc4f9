"""The classifier at the end of a functional Keras model: kept, taken off or to be added."""

import keras

from hne_tf.errors import InputError
from hne_tf.models.functional import graph

CHOICES = ("keep", "replace", "add")


def prepared(model: keras.Model, x: keras.KerasTensor, classifier: str) -> keras.Model:
    """A clone of a functional model that ends in logits, or in features for a new classifier.

    Args:
      model: the user's.
      x: input of the clone.
      classifier: `"keep"` for logits by the model's own classifier, without its softmax;
        `"replace"` for what its classifier reads; `"add"` for the model's output.

    Raises:
      InputError: for another choice, an output that is no softmax of logits, or where no
        classifier can be found.
    """
    if classifier not in CHOICES:
        raise InputError(f"classifier must be one of {', '.join(CHOICES)}, got {classifier!r}")
    tensor = model.outputs[0]
    if classifier == "add":
        return _cloned(model, tensor, x)
    tensor, activated = _without_softmax(model, tensor)
    if classifier == "keep":
        return _cloned(model, tensor, x, linear=activated)
    return _cloned(model, _features(model, tensor), x)


def gives_probabilities(model: keras.Model) -> bool:
    """Whether a functional model ends in a softmax; of others nothing is known."""
    if not getattr(model, "outputs", None):
        return False
    try:
        tensor, activated = _without_softmax(model, model.outputs[0])
    # Its end is another activation.
    except InputError:
        return False
    return activated is not None or tensor is not model.outputs[0]


def _cloned(
    model: keras.Model, tensor: keras.KerasTensor, x: keras.KerasTensor, linear: str | None = None
) -> keras.Model:
    def clone_layer(layer: keras.Operation) -> keras.Operation:
        config = layer.get_config()
        if layer.name == linear:
            config["activation"] = "linear"
        return type(layer).from_config(config)

    part = keras.Model(model.inputs[0], tensor)
    return keras.Model(x, graph.clone(part, x, clone_layer), name=model.name)


def _without_softmax(
    model: keras.Model, tensor: keras.KerasTensor
) -> tuple[keras.KerasTensor, str | None]:
    """Logits, and the name of the layer that gives them if it applies the softmax itself."""
    call = graph.producer(model, tensor)
    if call is None:
        raise InputError("the model must have layers, got one without any")
    operation = call.operation
    activation = getattr(operation, "activation", keras.activations.linear)
    if type(operation).__name__ == "Softmax":
        return call.inputs[0], None
    if isinstance(operation, keras.layers.Activation):
        if activation is keras.activations.softmax:
            return call.inputs[0], None
    elif activation is keras.activations.softmax:
        return tensor, operation.name
    if activation not in (None, keras.activations.linear):
        name = getattr(activation, "__name__", type(activation).__name__)
        raise InputError(
            "a classifier must end in logits or a softmax, got the activation "
            f"{name} of {operation.name!r}"
        )
    return tensor, None


def _features(model: keras.Model, tensor: keras.KerasTensor) -> keras.KerasTensor:
    """What the last layer with weights reads, which must be all that is left to be read."""
    call = graph.producer(model, tensor)
    while call is not None and len(call.inputs) == 1 and not graph.has_weights(call.operation):
        call = graph.producer(model, call.inputs[0])
    if call is None or not isinstance(call.operation, (keras.layers.Dense, keras.layers.Conv2D)):
        name = model.layers[-1].name if call is None else call.operation.name
        raise InputError(
            "the model must end in a Dense or Conv2D classifier to have it replaced, got "
            f"{name!r}; a model without a classifier takes classifier='add'"
        )
    return call.inputs[0]
