"""The ResNets of He et al., CVPR 2016, with 64 to 512 channels in four stages, teacher and student.

With the 7x7 stem they are ImageNet's; with a 3x3 stem of stride 1, those commonly trained on 32x32
images. Shortcuts that change the shape are projections.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from adadfq_jax.models.layers import Calibration, FrozenBatchNorm, QuantConv, QuantDense, QuantReLU
from adadfq_jax.models.resnet_cifar import BasicBlock, project
from adadfq_jax.ops.moments import global_average
from adadfq_jax.ops.pooling import max_pool_3x3

EXPANSION = 4  # a bottleneck's output channels, in units of its inner ones


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, and a shortcut.

    Attributes:
      features: channels of the inner convolutions; the output has four times as many.
      strides: stride of the block.
      stride_first: whether the first 1x1 convolution has the stride, or the 3x3 one.
      norm: constructor of the normalisation.
      calibration: how activation ranges follow a batch.
    """

    features: int
    strides: int
    stride_first: bool
    norm: Callable[..., nn.Module]
    calibration: Calibration

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, in) to (B, H / strides, W / strides, 4 features)."""
        outputs = EXPANSION * self.features
        first, second = (self.strides, 1) if self.stride_first else (1, self.strides)
        y = QuantConv(self.features, 1, first, name="conv1")(x)
        y = self.norm(name="norm1")(y)
        y = QuantReLU(name="relu1", calibration=self.calibration)(y)
        y = QuantConv(self.features, 3, second, name="conv2")(y)
        y = self.norm(name="norm2")(y)
        y = QuantReLU(name="relu2", calibration=self.calibration)(y)
        y = QuantConv(outputs, 1, name="conv3")(y)
        y = self.norm(name="norm3")(y)
        x = project(x, outputs, self.strides, self.norm)
        return QuantReLU(name="relu3", calibration=self.calibration)(x + y)


class ResNet(nn.Module):
    """A ResNet: a stem, four stages of blocks, global average, dense layer.

    Attributes:
      stage_sizes: blocks of each stage.
      widths: channels of each stage (inner channels for bottlenecks).
      stride_first: None for basic blocks; for bottlenecks, whether their first 1x1 convolution has
        the stride (True) or the 3x3 one (False).
      stem_size: 7 for a 7x7 stem of stride 2, 3 for a 3x3 stem of stride 1.
      pool: whether a 3x3 max-pool of stride 2 follows the stem.
      classes: number of classes C.
      norm: constructor of the normalisation (`flax.linen.BatchNorm` to train a teacher).
      calibration: how activation ranges follow a batch.
      remat: whether to make the activations inside of blocks again for the backward pass, instead
        of keeping them.
    """

    stage_sizes: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512)
    stride_first: bool | None = None
    stem_size: int = 7
    pool: bool = True
    classes: int = 1000
    norm: Callable[..., nn.Module] = FrozenBatchNorm
    calibration: Calibration = Calibration()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps normalised images (B, H, W, 3) to logits (B, classes)."""
        x = QuantConv(
            self.widths[0],
            self.stem_size,
            strides=2 if self.stem_size == 7 else 1,
            name="stem_conv",
        )(x)
        x = self.norm(name="stem_norm")(x)
        x = QuantReLU(name="stem_relu", calibration=self.calibration)(x)
        if self.pool:
            x = max_pool_3x3(x)
        for stage, (size, width) in enumerate(zip(self.stage_sizes, self.widths, strict=True), 1):
            for block in range(1, size + 1):
                x = self._block(width, 2 if stage > 1 and block == 1 else 1, stage, block)(x)
        return QuantDense(self.classes, name="classifier")(global_average(x))

    def _block(self, features: int, strides: int, stage: int, block: int) -> nn.Module:
        shared = {
            "features": features,
            "strides": strides,
            "norm": self.norm,
            "calibration": self.calibration,
            "name": f"stage{stage}_block{block}",
        }
        if self.stride_first is None:
            kind, shared["option_a"] = BasicBlock, None
        else:
            kind, shared["stride_first"] = Bottleneck, self.stride_first
        return (nn.remat(kind) if self.remat else kind)(**shared)
