"""The ResNets of the CIFAR experiments in He et al., CVPR 2016: depth 6n + 2, teacher and student.

Where the shape changes, shortcuts are of the paper's option A, without parameters, or projections
(a 1x1 convolution and a normalisation). Programs differ in option A: they take every second pixel
or average 2x2 of them, and add zero channels on both sides or at the end.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.errors import ConfigError
from adadfq_jax.models.layers import Calibration, FrozenBatchNorm, QuantConv, QuantDense, QuantReLU
from adadfq_jax.ops.moments import global_average
from adadfq_jax.ops.pooling import average_pool


@dataclasses.dataclass(frozen=True)
class OptionA:
    """A shortcut without parameters.

    Attributes:
      average: whether the smaller image is the mean of 2x2 pixels, or every second pixel.
      pad_end: whether the zero channels are added at the end, or one half of them on either side.
    """

    average: bool = False
    pad_end: bool = False

    def __call__(self, x: jax.Array, features: int, strides: int) -> jax.Array:
        """Maps (B, H, W, in) to (B, H / strides, W / strides, features).

        Raises:
          ConfigError: an odd number of pixels is to be averaged, which PyTorch's programs cannot.
        """
        if strides == 2 and self.average:
            if any(side % 2 for side in x.shape[1:3]):
                raise ConfigError(
                    "a network whose shortcuts average 2x2 pixels needs images whose side is a "
                    f"multiple of 4: a shortcut has {x.shape[1]}x{x.shape[2]} pixels to average."
                )
            x = average_pool(x)
        else:
            x = x[:, ::strides, ::strides]
        added = features - x.shape[-1]
        before = 0 if self.pad_end else added // 2
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, added - before)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      features: output channels.
      strides: stride of the first convolution and of the shortcut.
      option_a: the shortcut that changes the shape; None for a projection.
      norm: constructor of the normalisation.
      calibration: how activation ranges follow a batch.
    """

    features: int
    strides: int
    option_a: OptionA | None
    norm: Callable[..., nn.Module]
    calibration: Calibration

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, in) to (B, H / strides, W / strides, features)."""
        y = QuantConv(self.features, 3, self.strides, name="conv1")(x)
        y = self.norm(name="norm1")(y)
        y = QuantReLU(name="relu1", calibration=self.calibration)(y)
        y = QuantConv(self.features, 3, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        if self.option_a is None:
            x = project(x, self.features, self.strides, self.norm)
        else:
            x = self.option_a(x, self.features, self.strides)
        return QuantReLU(name="relu2", calibration=self.calibration)(x + y)


def project(x: jax.Array, features: int, strides: int, norm: Callable[..., nn.Module]) -> jax.Array:
    """The shortcut with parameters; the identity where the shape stays. Call it in a block."""
    if strides == 1 and x.shape[-1] == features:
        return x
    x = QuantConv(features, 1, strides, name="shortcut_conv")(x)
    return norm(name="shortcut_norm")(x)


class ResNetCifar(nn.Module):
    """A CIFAR ResNet: a 3x3 stem, stages of basic blocks, global average, dense layer.

    Attributes:
      stage_sizes: blocks of each stage; (n, n, n) makes a ResNet of depth 6n + 2.
      widths: channels of each stage.
      option_a: the shortcuts that change the shape; None for projections.
      classes: number of classes C.
      norm: constructor of the normalisation (`flax.linen.BatchNorm` to train a teacher).
      calibration: how activation ranges follow a batch.
      remat: whether to make the activations inside of blocks again for the backward pass, instead
        of keeping them.
    """

    stage_sizes: Sequence[int]
    widths: Sequence[int] = (16, 32, 64)
    option_a: OptionA | None = OptionA()
    classes: int = 10
    norm: Callable[..., nn.Module] = FrozenBatchNorm
    calibration: Calibration = Calibration()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps normalised images (B, H, W, 3) to logits (B, classes)."""
        x = QuantConv(self.widths[0], 3, name="stem_conv")(x)
        x = self.norm(name="stem_norm")(x)
        x = QuantReLU(name="stem_relu", calibration=self.calibration)(x)
        basic_block = nn.remat(BasicBlock) if self.remat else BasicBlock
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True), 1):
            for block in range(1, size + 1):
                x = basic_block(
                    features=width,
                    strides=2 if stage > 1 and block == 1 else 1,
                    option_a=self.option_a,
                    norm=self.norm,
                    calibration=self.calibration,
                    name=f"stage{stage}_block{block}",
                )(x)
        return QuantDense(self.classes, name="classifier")(global_average(x))
