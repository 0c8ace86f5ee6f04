"""The ResNets of the CIFAR experiments in He et al., CVPR 2016: depth 6n + 2, teacher and student.

Where the shape changes, shortcuts are of the paper's option A (every second pixel is taken and zero
channels are added on both sides, without parameters) or projections (a 1x1 convolution and a
normalisation).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.models.layers import (
    Calibration,
    FrozenBatchNorm,
    QuantConv,
    QuantDense,
    QuantReLU,
    global_average,
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      features: output channels.
      strides: stride of the first convolution and of the shortcut.
      projection: whether a shortcut that changes the shape has parameters.
      norm: constructor of the normalisation.
      calibration: how activation ranges follow a batch.
    """

    features: int
    strides: int
    projection: bool
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
        shortcut = project if self.projection else subsample
        return QuantReLU(name="relu2", calibration=self.calibration)(
            shortcut(x, self.features, self.strides, self.norm) + y
        )


def subsample(x: jax.Array, features: int, strides: int, *_) -> jax.Array:
    """The shortcut without parameters: takes pixels, adds zero channels."""
    added = features - x.shape[-1]
    x = x[:, ::strides, ::strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (added // 2, added - added // 2)))


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
      projection: whether shortcuts that change the shape have parameters.
      classes: number of classes C.
      norm: constructor of the normalisation (`flax.linen.BatchNorm` to train a teacher).
      calibration: how activation ranges follow a batch.
      remat: whether to make the activations inside of blocks again for the backward pass, instead
        of keeping them.
    """

    stage_sizes: Sequence[int]
    widths: Sequence[int] = (16, 32, 64)
    projection: bool = False
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
                    projection=self.projection,
                    norm=self.norm,
                    calibration=self.calibration,
                    name=f"stage{stage}_block{block}",
                )(x)
        return QuantDense(self.classes, name="classifier")(global_average(x))
