"""A network of one's own."""

import dataclasses

import keras

import hne_tf as hne


@keras.saving.register_keras_serializable("my_network")
@dataclasses.dataclass(frozen=True)
class SqueezeNet(hne.architectures.Architecture):
    """A squeeze that two expansions side by side follow (Iandola et al., arXiv 1602.07360).

    Attributes:
      widths: channels of each block, even.
      strides: stride of each block.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def blocks(self):
        return len(self.widths)

    def block(self, layers, block, x):
        half = self.widths[block] // 2
        squeeze = hne.architectures.Convolution(half, strides=self.strides[block])
        x = layers.conv(x, "squeeze", squeeze)
        expanded = [
            layers.conv(x, f"expand{size}", hne.architectures.Convolution(half, kernel_size=size))
            for size in (1, 3)
        ]
        return layers.concat(expanded, "concat")
