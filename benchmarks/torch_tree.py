"""The networks of a tree in PyTorch, as its users would write them.

The residual network of `hne_tf.models.architectures.ResNet` with bottleneck units: the same
layers, weights and numbers. Modules have the layers' names, `blocks.2.3.unit0.conv1.conv`
for `block2/node3/unit0/conv1/kernel`. Activations are `[batch, nodes * channels, height, width]`:
nodes that a module computes together lie side by side on channels.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

NORM_EPSILON = 1e-3
# Of the new statistics, where Keras counts the old ones.
NORM_MOMENTUM = 0.1


class Convolution(nn.Module):
    """Convolution, batch norm and, unless it is the last of a branch, ReLU.

    Args:
      inputs: channels that come in, of all groups.
      outputs: channels that go out, of all groups.
      kernel_size: height and width of the kernel.
      strides: pixels from one output to the next.
      groups: parts that channels are convolved in, each by itself.
      activation: whether a ReLU follows.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int = 1,
        strides: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        # TensorFlow pads an even side that is halved at its end only.
        before = (kernel_size - 1) // 2 if strides == 1 else 0
        after = kernel_size - 1 - before if strides == 1 else max(kernel_size - strides, 0)
        self.margins = (before, after, before, after) if before != after else None
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel_size,
            strides,
            0 if self.margins else before,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPSILON, momentum=NORM_MOMENTUM)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.margins:
            x = functional.pad(x, self.margins)
        x = self.norm(self.conv(x))
        return functional.relu(x) if self.activation else x


class Bottleneck(nn.Module):
    """A residual unit: 1x1, depthwise 3x3 and 1x1, the middle half as wide.

    Args:
      parents: nodes that what comes in is of.
      nodes: nodes that it computes, as many for each parent.
      inputs: channels of a parent.
      width: channels of a node that go out.
      strides: of the depthwise convolution and the shortcut.
    """

    def __init__(self, parents: int, nodes: int, inputs: int, width: int, strides: int) -> None:
        super().__init__()
        middle = max(1, width // 2)
        self.parents, self.per_parent = parents, nodes // parents
        self.shortcut = None
        if strides > 1 or inputs != width:
            self.shortcut = Convolution(
                parents * inputs, nodes * width, 1, strides, parents, activation=False
            )
        self.conv1 = Convolution(parents * inputs, nodes * middle, groups=parents)
        self.conv2 = Convolution(nodes * middle, nodes * middle, 3, strides, nodes * middle)
        self.conv3 = Convolution(nodes * middle, nodes * width, groups=nodes, activation=False)
        # A unit passes on what comes in at first.
        nn.init.zeros_(self.conv3.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shortcut is not None:
            kept = self.shortcut(x)
        elif self.per_parent > 1:
            kept = x.unflatten(1, (self.parents, -1)).repeat_interleave(self.per_parent, 1)
            kept = kept.flatten(1, 2)
        else:
            kept = x
        return functional.relu(kept + self.conv3(self.conv2(self.conv1(x))))


class Nodes(nn.Module):
    """One block of one node, or of several that hang from the nodes of the block above.

    Args:
      parents: nodes above; 1 for a node by itself.
      nodes: nodes that it computes.
      inputs: channels of a parent, or of the image.
      width: channels of a node.
      units: residual units.
      strides: of the first of them.
      stem: channels of the convolution before the units, 0 for none.
      classes: that a leaf tells apart, 0 if the nodes are no leaves.
    """

    def __init__(
        self,
        parents: int,
        nodes: int,
        inputs: int,
        width: int,
        units: int,
        strides: int,
        stem: int = 0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.stem = Convolution(inputs, stem, 3) if stem else None
        inputs = stem or inputs
        self.units = [f"unit{index}" for index in range(units)]
        for index, name in enumerate(self.units):
            first = (parents, nodes, inputs, width, strides)
            unit = Bottleneck(*(first if index == 0 else (nodes, nodes, width, width, 1)))
            self.add_module(name, unit)
        self.head = nn.Conv2d(nodes * width, nodes * classes, 1, groups=nodes) if classes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activation, or logits `[batch, nodes, classes]` of leaves."""
        if self.stem is not None:
            x = self.stem(x)
        for name in self.units:
            x = getattr(self, name)(x)
        if self.head is None:
            return x
        logits = self.head(x.mean((2, 3), keepdim=True))
        return logits.flatten(1).unflatten(1, (self.nodes, -1))


class TorchTree(nn.Module):
    """Images `[batch, height, width, 3]` of uint8 to leaf logits `[batch, leaves, classes]`.

    Args:
      branching: one factor per block.
      widths: channels of each block.
      units: residual units of each block.
      strides: of each block's first unit.
      stem_width: channels of the first convolution.
      classes: number of classes.
      mean: of the images' channels.
      std: of the images' channels.
      grouped: whether the nodes of a block are computed together, by grouped convolutions.
    """

    def __init__(
        self,
        branching: Sequence[int],
        widths: Sequence[int],
        units: Sequence[int],
        strides: Sequence[int],
        stem_width: int,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        grouped: bool = False,
    ) -> None:
        super().__init__()
        self.branching = tuple(branching)
        self.grouped = grouped
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.blocks = nn.ModuleList()
        nodes, inputs = 1, len(mean)
        for block, factor in enumerate(branching):
            parents, nodes = nodes, nodes * factor
            settings = (inputs, widths[block], units[block], strides[block])
            ends = (0 if block else stem_width, classes if block == len(branching) - 1 else 0)
            together = [(parents, nodes)] if grouped else [(1, 1)] * nodes
            self.blocks.append(nn.ModuleList(Nodes(*each, *settings, *ends) for each in together))
            inputs = widths[block]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # With channels last, a CPU takes several times as long for the depthwise convolutions.
        x = (images.permute(0, 3, 1, 2).contiguous().float() - self.mean) / self.std
        above = [x]
        for block, factor in zip(self.blocks, self.branching, strict=True):
            children = 1 if self.grouped else factor
            above = [node(above[index // children]) for index, node in enumerate(block)]
        return torch.cat(above, 1)


def hierarchical_distillation(
    leaf_logits: torch.Tensor, labels: torch.Tensor, alpha: float = 0.5, temperature: float = 2.0
) -> torch.Tensor:
    """Mean over the batch of what `hne_tf.objectives.HierarchicalDistillation` gives."""
    leaves = leaf_logits.shape[1]
    per_leaf = labels[:, None].expand(-1, leaves)
    of_labels = functional.cross_entropy(
        leaf_logits.transpose(1, 2), per_leaf, reduction="none"
    ).sum(1)
    counts = torch.arange(1, leaves + 1, device=leaf_logits.device).view(1, -1, 1)
    means = leaf_logits.cumsum(1) / counts / temperature
    smaller = [2**index - 1 for index in range((leaves - 1).bit_length())]
    teacher = means[:, -1:].detach().softmax(-1)
    distilled = -(teacher * means[:, smaller].log_softmax(-1)).sum((1, 2))
    return (of_labels + alpha * temperature**2 * distilled).mean()


def sgd(network: nn.Module, weight_decay: float, momentum: float, rate: float) -> torch.optim.SGD:
    """SGD with Nesterov momentum, with weight decay for kernels only."""
    kernels = [each for each in network.parameters() if each.ndim > 1]
    others = [each for each in network.parameters() if each.ndim == 1]
    groups = [{"params": kernels, "weight_decay": weight_decay}, {"params": others}]
    return torch.optim.SGD(groups, rate, momentum, nesterov=momentum > 0)
