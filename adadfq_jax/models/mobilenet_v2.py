"""MobileNetV2 (Sandler et al., CVPR 2018), teacher and student.

Two implementations of it are in wide use. They differ in how a width multiplier rounds channels, in
whether the first block, whose expansion factor is 1, has an expansion nevertheless, and in whether
the classifier is a dense layer or a 1x1 convolution without bias. For CIFAR's images the strides of
the stem and of the second stage are taken away, which no weight shows.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from adadfq_jax.models.layers import Calibration, FrozenBatchNorm, QuantConv, QuantDense, QuantReLU
from adadfq_jax.ops.moments import global_average

STAGE_SIZES = (1, 2, 3, 4, 3, 3, 1)
# Of the stem and of the stages: the original's, for images of 224 pixels.
STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
_EXPANSION = 6  # except in the first stage
_WIDTHS = (32, 16, 24, 32, 64, 96, 160, 320, 1280)


def rounded_widths(multiplier: float) -> tuple[int, ...]:
    """Returns stem, stage and head channels: multiples of 8, at least 90 % of the exact ones.

    The head never has fewer than 1280. This is the original's, torchvision's and timm's rule.
    """
    *widths, head = _WIDTHS
    return (*(_round(multiplier * width) for width in widths), _round(max(1, multiplier) * head))


def truncated_widths(multiplier: float) -> tuple[int, ...]:
    """Returns stem, stage and head channels rounded down, with a head of at least 1280.

    This is pytorchcv's rule.
    """
    *widths, head = _WIDTHS
    return (*(int(width * multiplier) for width in widths), int(head * max(1, multiplier)))


def _round(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 convolution and a linear 1x1 projection.

    Attributes:
      features: output channels.
      strides: stride of the depthwise convolution.
      expansion: inner channels, in units of the input's.
      expand: whether there is an expansion; without one the factor is 1.
      norm: constructor of the normalisation.
      calibration: how activation ranges follow a batch.
    """

    features: int
    strides: int
    expansion: int
    expand: bool
    norm: Callable[..., nn.Module]
    calibration: Calibration

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, in) to (B, H / strides, W / strides, features)."""
        inner = self.expansion * x.shape[-1]
        y = x
        if self.expand:
            y = self._activate("expand", QuantConv(inner, 1, name="expand_conv")(y))
        y = QuantConv(inner, 3, self.strides, groups=inner, name="depthwise_conv")(y)
        y = self._activate("depthwise", y)
        y = QuantConv(self.features, 1, name="project_conv")(y)
        y = self.norm(name="project_norm")(y)
        return x + y if x.shape == y.shape else y

    def _activate(self, name: str, x: jax.Array) -> jax.Array:
        x = self.norm(name=f"{name}_norm")(x)
        return QuantReLU(6.0, name=f"{name}_relu", calibration=self.calibration)(x)


class MobileNetV2(nn.Module):
    """MobileNetV2: a 3x3 stem, inverted residuals, a 1x1 head, global average, classifier.

    Attributes:
      widths: channels of the stem, of the seven stages and of the head.
      strides: of the stem and of the first block of each stage.
      expand_first: whether the first block has an expansion, of factor 1.
      dense_classifier: whether the classifier is a dense layer with bias, or a 1x1 convolution
        without.
      classes: number of classes C.
      norm: constructor of the normalisation (`flax.linen.BatchNorm` to train a teacher).
      calibration: how activation ranges follow a batch.
      remat: whether to make the activations inside of blocks again for the backward pass, instead
        of keeping them.
    """

    widths: Sequence[int] = _WIDTHS
    strides: Sequence[int] = STRIDES
    expand_first: bool = False
    dense_classifier: bool = True
    classes: int = 1000
    norm: Callable[..., nn.Module] = FrozenBatchNorm
    calibration: Calibration = Calibration()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps normalised images (B, H, W, 3) to logits (B, classes)."""
        stem, *widths, head = self.widths
        first, *strides = self.strides
        x = self._activate("stem", QuantConv(stem, 3, first, name="stem_conv")(x))
        inverted_residual = nn.remat(InvertedResidual) if self.remat else InvertedResidual
        stages = zip(STAGE_SIZES, strides, widths, strict=True)
        for stage, (size, stride, width) in enumerate(stages, 1):
            for block in range(1, size + 1):
                x = inverted_residual(
                    features=width,
                    strides=stride if block == 1 else 1,
                    expansion=1 if stage == 1 else _EXPANSION,
                    expand=stage > 1 or self.expand_first,
                    norm=self.norm,
                    calibration=self.calibration,
                    name=f"stage{stage}_block{block}",
                )(x)
        x = self._activate("head", QuantConv(head, 1, name="head_conv")(x))
        x = global_average(x)
        if self.dense_classifier:
            return QuantDense(self.classes, name="classifier")(x)
        x = QuantConv(self.classes, 1, name="classifier")(x[:, None, None])
        return x.reshape(-1, self.classes)

    def _activate(self, name: str, x: jax.Array) -> jax.Array:
        x = self.norm(name=f"{name}_norm")(x)
        return QuantReLU(6.0, name=f"{name}_relu", calibration=self.calibration)(x)
