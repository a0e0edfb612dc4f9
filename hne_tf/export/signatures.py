"""The signatures of a SavedModel: per ensemble size, per depth-first step, of some leaves."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hne_tf.errors import InputError
from hne_tf.exported.interface import (
    TEMPERATURES,
    LeavesSignature,
    check_leaves,
    running_sum_width,
    sum_output,
)
from hne_tf.models import weights
from hne_tf.models.architectures.architecture import Activation
from hne_tf.models.averaging import add, add_all, answer, contribution, leaves, start
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.models.layers.served import ServedLayers
from hne_tf.tree import Step

Signatures = dict[str, Callable[..., dict[str, tf.Tensor]]]


def signatures(
    model: TreeEnsemble,
    sizes: Sequence[int],
    temperatures: Sequence[float] | None = None,
    parts: Sequence[LeavesSignature] = (),
) -> Signatures:
    """All signatures of a published model.

    `ensemble_<n>` maps `images`, uint8 `[batch, height, width, channels]`, to
    `logits` and `probabilities`, float32 `[batch, classes]`; `serving_default`
    is the full ensemble. `step_<n>` goes from n - 1 to n leaves, see
    `step_signature`. `leaves_<a>_<b>` are the sums of some leaves, see
    `leaves_signature`. All may be called from several threads at once.

    Args:
      model: built by the deploy factory, or of an architecture that is not folded.
      sizes: ensemble sizes to export; the full one is always among the answers.
      temperatures: what the logits of each size from 1 to N are divided by.
      parts: leaves that have a signature together.

    Raises:
      InputError: if a size is not between 1 and the number of leaves, or twice there, or
        for parts that the model cannot have, see `interface.check_leaves`.
    """
    if len(set(sizes)) != len(sizes) or not sizes:
        raise InputError(f"sizes must be different ensemble sizes, got {tuple(sizes)}")
    for size in sizes:
        model.tree.check_size(size)
    check_leaves(parts, model.average, model.tree.leaves)
    model = served(model)
    full = model.tree.leaves
    spread = {part.signature: leaves_signature(model, part, temperatures) for part in parts}
    temperatures = [1.0] * full if temperatures is None else temperatures
    ensembles = {
        f"ensemble_{size}": ensemble_signature(model, size, temperatures[size - 1])
        for size in sorted({*sizes, full})
    }
    steps = {
        f"step_{step.size}": step_signature(model, step, temperatures[step.size - 1])
        for step in model.tree.steps
    }
    return {"serving_default": ensembles[f"ensemble_{full}"], **ensembles, **steps, **spread}


def served(model: TreeEnsemble) -> TreeEnsemble:
    """The same model as `ServedLayers` builds it, where sums could be fused otherwise."""
    # The rounding of quantised layers keeps sums and convolutions apart by itself.
    if type(model.factory) is not DeployLayers and not model.architecture.brings_layers:
        return model
    copy = model.rebuilt(ServedLayers())
    weights.load(copy, weights.read(model))
    return copy


def ensemble_signature(
    model: TreeEnsemble, size: int, temperature: float = 1.0
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The answer of size `size` in one call, which computes what it needs and no more.

    Its logits are divided by the temperature.
    """
    average, answering = model.average, leaves(size, model.average)
    network, values = model.of_leaves(answering), _values(model.nodes_of(answering))

    @tf.function(input_signature=[_images(model)], autograph=False)
    def ensemble(images: tf.Tensor) -> dict[str, tf.Tensor]:
        with _constants(values):
            leaf_logits = network(_checked(images), training=False)
        running_sum = add_all(contribution(leaf_logits, average), average)
        logits, probabilities = answer(running_sum, size, average, temperature)
        return {"logits": logits, "probabilities": probabilities}

    return ensemble


def step_signature(
    model: TreeEnsemble, step: Step, temperature: float = 1.0
) -> Callable[..., dict[str, tf.Tensor]]:
    """One more leaf: computes only the nodes that no earlier step has computed.

    Step 1 takes `images`. A later step takes `running_sum` `[batch, running_sum_width]`
    and `cache`, the activation at the node where its leaf branches off (or
    `images` where that is the root). Outputs `running_sum`, `probabilities`
    and a `cache_<block>` for each block from which a later step branches off. An
    activation of several tensors is one cache, `[batch, numbers]`.
    """
    nodes = {
        block: model.node_models[block][node]
        for block, node in enumerate(step.nodes, start=step.branch_block)
    }
    values, average = _values(nodes.values()), model.average
    branch = _start(model, step)
    inputs = [step_input(model, step)]
    if step.size > 1:
        numbers = running_sum_width(len(model.images.class_names), average)
        inputs.append(tf.TensorSpec([None, numbers], tf.float32, name="running_sum"))

    @tf.function(input_signature=inputs, autograph=False)
    def take_step(x: tf.Tensor, running_sum: tf.Tensor | float = 0.0) -> dict[str, tf.Tensor]:
        x = _checked(x)
        x = model.normalise(x) if step.branch_block == 0 else _unpacked(x, branch)
        outputs = {}
        with _constants(values):
            for block, node in nodes.items():
                x = node(x, training=False)
                if block in step.cached_blocks:
                    outputs[f"cache_{block}"] = _packed(x)
        new = contribution(x, average)
        if step.size > 1:
            running_sum = add(_checked(running_sum), new, step.size, average)
        else:
            running_sum = start(new, average)
        probabilities = answer(running_sum, step.size, average, temperature)[1]
        return {**outputs, "running_sum": running_sum, "probabilities": probabilities}

    return take_step


def leaves_signature(
    model: TreeEnsemble, part: LeavesSignature, temperatures: Sequence[float] | None = None
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """What some leaves add to the running sum: computes the nodes on their paths alone.

    Whoever has the sums of other leaves adds them up and answers. Temperatures are of
    the ensemble that has answered, so that they are given beside the sum, not applied.
    """
    members, average = range(part.first, part.stop), model.average
    network, values = model.of_leaves(members), _values(model.nodes_of(members))

    @tf.function(input_signature=[_images(model)], autograph=False)
    def some_leaves(images: tf.Tensor) -> dict[str, tf.Tensor]:
        with _constants(values):
            leaf_logits = network(_checked(images), training=False)
        outputs = {sum_output(average): add_all(contribution(leaf_logits, average), average)}
        if temperatures is not None:
            # A row per image: TF Serving splits batches along the first dimension.
            rows = tf.ones([tf.shape(images)[0], 1])
            outputs[TEMPERATURES] = rows * tf.constant([temperatures], tf.float32)
        return outputs

    return some_leaves


def step_input(model: TreeEnsemble, step: Step) -> tf.TensorSpec:
    """What a step starts from: `images`, or the `cache` of the block before its branch."""
    if step.branch_block == 0:
        return _images(model)
    start = _start(model, step)
    shape = [_spans(start)[-1][1]] if isinstance(start, list) else start.shape[1:]
    return tf.TensorSpec([None, *shape], tf.float32, name="cache")


def _start(model: TreeEnsemble, step: Step) -> Activation:
    """The activation that a step continues from, or the images' form."""
    if step.branch_block == 0:
        return model.input
    parent = model.tree.parent(step.branch_block, step.nodes[0])
    return model.node_models[step.branch_block - 1][parent].output


def _spans(activation: list[Any]) -> list[tuple[int, int]]:
    """Where the numbers of each tensor lie if all of an image's are side by side."""
    counts = [math.prod(tensor.shape[1:]) for tensor in activation]
    return list(itertools.pairwise(itertools.accumulate(counts, initial=0)))


def _packed(activation: Activation) -> tf.Tensor:
    """An activation as one tensor; several are laid side by side, `[batch, numbers]`.

    Not by a concatenation, which would round integers anew, to one scale for all:
    zeros around each tensor and a sum leave the numbers as they are.
    """
    if not isinstance(activation, list):
        return activation
    spans = _spans(activation)
    total = spans[-1][1]
    return tf.add_n(
        [
            tf.pad(tf.reshape(x, [-1, stop - start]), [[0, 0], [start, total - stop]])
            for x, (start, stop) in zip(activation, spans, strict=True)
        ]
    )


def _unpacked(cache: tf.Tensor, like: Activation) -> Activation:
    """The activation that `_packed` made one tensor of."""
    if not isinstance(like, list):
        return cache
    activation = []
    for tensor, (first, last) in zip(like, _spans(like), strict=True):
        part = cache[:, first:last]
        # Parts that become integers at once would share one scale. A sum, here of what
        # is above zero and below, is in floating point and leaves each its own.
        part = tf.maximum(part, 0.0) + tf.minimum(part, 0.0)
        activation.append(tf.reshape(part, [-1, *tensor.shape[1:]]))
    return activation


def save(endpoints: Signatures, folder: str) -> None:
    """Writes a SavedModel of the signatures."""
    concrete = {name: function.get_concrete_function() for name, function in endpoints.items()}
    tf.saved_model.save(tf.Module(), folder, signatures=concrete)


def _values(nodes: Iterable[keras.Model]) -> list[tuple[keras.Variable, np.ndarray]]:
    """The nodes' variables with their values, which a graph that is traced cannot read."""
    return [(variable, variable.numpy()) for node in nodes for variable in node.variables]


def _constants(values: list[tuple[keras.Variable, np.ndarray]]) -> keras.StatelessScope:
    """A scope in which variables are constants of the graph that is traced.

    Reading hundreds of small variables takes longer than computing with them:
    for one image, half of the answer's time. The price is size: a weight is
    stored once per signature that uses it, about three times in all.
    """
    return keras.StatelessScope([(variable, tf.constant(value)) for variable, value in values])


def _checked(x: tf.Tensor) -> tf.Tensor:
    """Checks the shape at run time: without it a tensor of another rank ends the server.

    TF Serving compares no shapes, and the convolution kernels abort the process.
    """
    return tf.ensure_shape(x, x.shape)


def _images(model: TreeEnsemble) -> tf.TensorSpec:
    return tf.TensorSpec([None, *model.images.shape], tf.uint8, name="images")
