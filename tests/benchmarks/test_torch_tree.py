"""The network in PyTorch that benchmarks compare with is ours."""

import numpy as np
import pytest

from hne_tf.evaluation import cost
from hne_tf.image_spec import ImageSpec
from hne_tf.models import weights
from hne_tf.models.architectures import ResNet
from hne_tf.models.ensemble import TreeEnsemble
from hne_tf.models.layers.deploy import DeployLayers
from hne_tf.objectives import HierarchicalDistillation
from hne_tf.tree import Tree

torch = pytest.importorskip("torch")

from benchmarks import torch_tree  # noqa: E402 - it imports torch

IMAGES = ImageSpec((16, 16, 3), tuple("0123456"), (120.0, 130.0, 125.0), (60.0, 63.0, 65.0))
# Widths that stay and that grow, units that halve sides and that do not.
RESNET = ResNet("bottleneck", (8, 8, 12, 12), (2, 1, 2, 1), (1, 2, 2, 1), stem_width=6)
TREE = Tree((1, 2, 2, 2))
# What a canonical name ends with is called elsewhere.
ENDS = {
    "norm/gamma": "norm.weight",
    "norm/beta": "norm.bias",
    "norm/moving_mean": "norm.running_mean",
    "norm/moving_variance": "norm.running_var",
    "depthwise_kernel": "conv.weight",
    "kernel": "conv.weight",
    "bias": "bias",
}


@pytest.fixture(scope="module")
def ours():
    """A tree whose statistics, scales and offsets are not those of a new one."""
    model = TreeEnsemble(RESNET, TREE, IMAGES)
    random = np.random.default_rng(1)
    values = {
        name: value if name.endswith("kernel") else random.uniform(0.5, 1.5, value.shape)
        for name, value in weights.read(model).items()
    }
    weights.load(model, values)
    return model


def network(grouped, model):
    """The network in PyTorch, with the weights of ours."""
    built = torch_tree.TorchTree(
        *(TREE.branching, RESNET.widths, RESNET.units, RESNET.strides, RESNET.stem_width),
        *(len(IMAGES.class_names), IMAGES.mean, IMAGES.std, grouped),
    )
    state = {}
    for name, value in weights.read(model).items():
        block, node, rest = name.split("/", 2)
        place = f"blocks.{block[5:]}.{0 if grouped else node[4:]}"
        end = next(each for each in ENDS if rest.endswith(each))
        key = f"{place}.{rest.removesuffix(end).replace('/', '.')}{ENDS[end]}"
        key = key.replace("head.conv", "head")
        # Output channels, which lie last, come first; inputs of a depthwise kernel are its outputs.
        if end == "depthwise_kernel":
            value = value.transpose(2, 3, 0, 1)
        elif value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif value.ndim == 2:
            value = value.T[..., None, None]
        state.setdefault(key, []).append(torch.tensor(value))
    built.load_state_dict({key: torch.cat(values) for key, values in state.items()}, strict=False)
    missing = built.state_dict().keys() ^ state.keys()
    assert all(key.endswith("num_batches_tracked") for key in missing), missing
    return built


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(2)
    images = random.integers(0, 256, (8, *IMAGES.shape)).astype(np.uint8)
    return images, random.integers(0, len(IMAGES.class_names), 8)


@pytest.mark.parametrize("grouped", [False, True], ids=["branched", "grouped"])
def test_it_computes_what_ours_does(grouped, ours, batch):
    theirs = network(grouped, ours)
    images, _ = batch
    for training in (False, True):
        # Its norms keep statistics of the batch, as ours do, after both have answered.
        found = theirs.train(training)(torch.tensor(images)).detach().numpy()
        expected = np.asarray(ours(images, training=training))
        assert expected.shape == (8, TREE.leaves, len(IMAGES.class_names))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("grouped", [False, True], ids=["branched", "grouped"])
def test_it_costs_what_ours_does(grouped, ours):
    from torch.utils.flop_counter import FlopCounterMode

    theirs = network(grouped, ours)
    parameters = sum(each.numel() for each in theirs.parameters())
    assert parameters == sum(int(np.prod(each.shape)) for each in ours.trainable_variables)
    with FlopCounterMode(display=False) as counter:
        theirs.eval()(torch.zeros((1, *IMAGES.shape), dtype=torch.uint8))
    folded = TreeEnsemble(RESNET, TREE, IMAGES, DeployLayers())
    expected = cost.per_size(folded, [TREE.leaves])[TREE.leaves].multiply_adds
    # Two operations for each, and none for anything but convolutions.
    assert counter.get_total_flops() == 2 * expected


def test_it_learns_from_the_same_loss(ours, batch):
    images, labels = batch
    leaf_logits = np.array(ours(images, training=False))
    found = torch_tree.hierarchical_distillation(torch.tensor(leaf_logits), torch.tensor(labels))
    expected = HierarchicalDistillation().call(labels, leaf_logits)
    assert float(found) == pytest.approx(float(np.mean(expected)), rel=1e-5)


def test_only_kernels_decay(ours):
    theirs = network(True, ours)
    decayed, others = torch_tree.sgd(theirs, 5e-4, 0.9, 0.1).param_groups
    names = {id(each): name for name, each in theirs.named_parameters()}
    assert all(
        "conv.weight" in names[id(each)] or "head" in names[id(each)] for each in decayed["params"]
    )
    assert {names[id(each)].rsplit(".", 2)[1] for each in others["params"]} == {"norm", "head"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0)
