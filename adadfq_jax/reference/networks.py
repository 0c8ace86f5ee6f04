"""The quantizer, ResNets and MobileNetV2 (teacher and student), and the generators.

Images and activations are (B, channels, H, W), whatever their memory format.
"""

import torch
import torch.nn.functional as F
from torch import nn

DECAY = 0.9  # of the moving average of activation ranges


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lo, hi, levels):
        scale = levels / (hi - lo).clamp(min=1e-8)
        zero = (scale * lo).round_()
        # The released program subtracts 2^(k-1) from the codes before the clip and adds it after;
        # that changes nothing and is left out.
        codes = (x * scale).sub_(zero).round_().clamp_(0, levels)
        return codes.add_(zero).div_(scale)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None, None


def fake_quantize(x, lo, hi, bits):
    """Round x onto the 2^bits levels of [lo, hi] (tensors, broadcast against x).

    The gradient is the identity for x, clipped values included, and none for the range.
    """
    return _FakeQuantize.apply(x, lo, hi, 2**bits - 1)


def _quantize_weight(weight, bits):
    """Fake-quantize (O, ...) weights over the current range of each output channel."""
    lo, hi = weight.detach().flatten(1).aminmax(dim=1)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    return fake_quantize(weight, lo.view(shape), hi.view(shape), bits)


class Conv2d(nn.Conv2d):
    """Convolution padded by half its size, no bias; fake-quantizes its weight if bits are set."""

    def __init__(self, inputs, outputs, stride, bits, size=3, groups=1):
        super().__init__(
            inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False
        )
        self.bits = bits

    def forward(self, x):
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        weight = self.weight if self.bits is None else _quantize_weight(self.weight, self.bits)
        return F.conv2d(x, weight, None, self.stride, self.padding, groups=self.groups)


class Linear(nn.Linear):
    """Dense layer; fake-quantizes its weight, never its bias, if bits are set."""

    def __init__(self, inputs, outputs, bits):
        super().__init__(inputs, outputs)
        self.bits = bits

    def forward(self, x):
        """(B, inputs) -> (B, outputs)."""
        weight = self.weight if self.bits is None else _quantize_weight(self.weight, self.bits)
        return F.linear(x, weight, self.bias)


class Activation(nn.Module):
    """ReLU or ReLU6, then fake quantization over the range (``low``, ``high``) if bits are set.

    While ``calibrating`` the range follows the batches, and each batch is quantized with the
    range that already includes it. Before the first such batch the range is empty. The input is
    overwritten with its ReLU (a twentieth of a step is saved by such reuse of memory).
    """

    def __init__(self, bits, six=False):
        super().__init__()
        self.bits, self.six = bits, six
        self.calibrating = False
        if bits is not None:
            for name in ("low", "high", "mean_low", "mean_high"):
                self.register_buffer(name, torch.zeros(()))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        """A tensor of any shape -> the same shape; one range serves the whole tensor."""
        x = F.relu6(x, inplace=True) if self.six else F.relu(x, inplace=True)
        if self.bits is None:
            return x
        if self.calibrating:
            self._update_range(x.detach())
        return fake_quantize(x, self.low, self.high, self.bits)

    def _update_range(self, x):
        low, high = x.aminmax()
        self.mean_low.mul_(DECAY).add_(low, alpha=1 - DECAY)
        self.mean_high.mul_(DECAY).add_(high, alpha=1 - DECAY)
        self.updates += 1
        # The means stay uncorrected, so that the bias correction is never applied twice.
        correction = 1 - DECAY ** self.updates.to(x.dtype)
        self.low.copy_(self.mean_low / correction)
        self.high.copy_(self.mean_high / correction)


class _NormWithStatistics(torch.autograd.Function):
    """Evaluation-mode BatchNorm of a frozen layer, and the input's mean and biased variance.

    One backward pass over the tensor for all three outputs, where autograd takes about six.
    """

    @staticmethod
    def forward(ctx, x, scale, shift, stored_mean, stored_var, eps):
        mean = x.mean(dim=(0, 2, 3))
        centred = x - mean.view(-1, 1, 1)
        # Two plain sums: several times faster on CPU than torch.var_mean, and as accurate.
        var = centred.square().mean(dim=(0, 2, 3))
        ctx.save_for_backward(centred, scale * (stored_var + eps).rsqrt())
        y = F.batch_norm(x, stored_mean, stored_var, scale, shift, False, 0.0, eps)
        return y, mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_y, d_mean, d_var):
        centred, slope = ctx.saved_tensors
        count = centred.numel() // centred.shape[1]
        d_mean, d_var, slope = (v.view(-1, 1, 1) for v in (d_mean / count, d_var / count, slope))
        d_x = torch.addcmul(d_mean, centred, d_var, value=2).addcmul_(d_y, slope)
        return d_x, None, None, None, None, None


class BatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that always uses its stored statistics, in training mode too.

    ``collect`` makes it keep the (mean, biased variance) of its input in ``statistics``: None,
    "plain" (any layer) or "fused" (faster; the layer's scale and shift get no gradient).
    """

    collect = None
    statistics = None

    def forward(self, x):
        """(B, C, H, W) -> the same shape."""
        if self.collect == "fused":
            y, *self.statistics = _NormWithStatistics.apply(
                x, self.weight, self.bias, self.running_mean, self.running_var, self.eps
            )
            return y
        if self.collect == "plain":
            self.statistics = [x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), correction=0)]
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


class Block(nn.Module):
    """Two convolutions and a shortcut.

    Where the shape changes, the shortcut is a 1x1 convolution if ``projection``, else option A:
    stride-2 subsampling, or the ``average`` of 2x2 pixels, and zero channels on both sides, or all
    of them at the end (``pad_end``).
    """

    def __init__(
        self,
        inputs,
        outputs,
        stride,
        weight_bits,
        activation_bits,
        projection=False,
        average=False,
        pad_end=False,
    ):
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, stride, weight_bits)
        self.bn1 = BatchNorm2d(outputs)
        self.act1 = Activation(activation_bits)
        self.conv2 = Conv2d(outputs, outputs, 1, weight_bits)
        self.bn2 = BatchNorm2d(outputs)
        self.act2 = Activation(activation_bits)
        self.stride, self.average = stride, average
        self.projection = projection and (stride != 1 or inputs != outputs)
        if self.projection:
            self.shortcut_conv = Conv2d(inputs, outputs, stride, weight_bits, size=1)
            self.shortcut_bn = BatchNorm2d(outputs)
        missing = outputs - inputs
        before = 0 if pad_end else missing // 2
        self.channel_padding = (before, missing - before)

    def forward(self, x):
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.projection:
            x = self.shortcut_bn(self.shortcut_conv(x))
        elif self.stride != 1 or any(self.channel_padding):
            if self.average and self.stride == 2:
                x = F.avg_pool2d(x, 2)
            else:
                x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, *self.channel_padding))
        y += x
        return self.act2(y)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to four times the channels, and a shortcut as ``Block``'s.

    ``stride_first``: whether the first convolution has the stride, or the second.
    """

    def __init__(self, inputs, features, stride, weight_bits, activation_bits, stride_first):
        super().__init__()
        outputs = 4 * features
        strides = (stride, 1) if stride_first else (1, stride)
        self.conv1 = Conv2d(inputs, features, strides[0], weight_bits, size=1)
        self.bn1 = BatchNorm2d(features)
        self.act1 = Activation(activation_bits)
        self.conv2 = Conv2d(features, features, strides[1], weight_bits)
        self.bn2 = BatchNorm2d(features)
        self.act2 = Activation(activation_bits)
        self.conv3 = Conv2d(features, outputs, 1, weight_bits, size=1)
        self.bn3 = BatchNorm2d(outputs)
        self.act3 = Activation(activation_bits)
        self.projection = stride != 1 or inputs != outputs
        if self.projection:
            self.shortcut_conv = Conv2d(inputs, outputs, stride, weight_bits, size=1)
            self.shortcut_bn = BatchNorm2d(outputs)

    def forward(self, x):
        """(B, inputs, H, W) -> (B, 4 features, H / stride, W / stride)."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.shortcut_bn(self.shortcut_conv(x)) if self.projection else x
        return self.act3(y)


class InvertedResidual(nn.Module):
    """1x1 expansion (if any), depthwise 3x3, linear 1x1 projection; a shortcut if shapes agree."""

    def __init__(self, inputs, outputs, stride, expansion, expand, weight_bits, activation_bits):
        super().__init__()
        inner = expansion * inputs
        self.expand = expand
        if expand:
            self.expand_conv = Conv2d(inputs, inner, 1, weight_bits, size=1)
            self.expand_bn = BatchNorm2d(inner)
            self.expand_act = Activation(activation_bits, six=True)
        self.depthwise_conv = Conv2d(inner, inner, stride, weight_bits, groups=inner)
        self.depthwise_bn = BatchNorm2d(inner)
        self.depthwise_act = Activation(activation_bits, six=True)
        self.project_conv = Conv2d(inner, outputs, 1, weight_bits, size=1)
        self.project_bn = BatchNorm2d(outputs)

    def forward(self, x):
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""
        y = x
        if self.expand:
            y = self.expand_act(self.expand_bn(self.expand_conv(y)))
        y = self.depthwise_act(self.depthwise_bn(self.depthwise_conv(y)))
        y = self.project_bn(self.project_conv(y))
        return y + x if y.shape == x.shape else y


class Classifier(nn.Module):
    """Base class of the networks: (B, 3, H, W) images -> (B, classes) logits.

    A network keeps the arguments of its constructor, without ``bits``, in ``shape``.
    """

    def quantized(self, bits):
        """A quantized copy of this network, not yet calibrated: the student of this teacher."""
        student = type(self)(**self.shape, bits=bits)
        student = student.to(self.linear.weight)
        unexpected = student.load_state_dict(self.state_dict(), strict=False).unexpected_keys
        if unexpected:
            raise ValueError(f"only a network without bits can be quantized; found {unexpected}")
        return student

    @property
    def activations(self):
        """The Activation layers, in the order in which a forward pass meets them."""
        return [m for m in self.modules() if isinstance(m, Activation)]

    @property
    def norms(self):
        """The BatchNorm layers, in the order in which a forward pass meets them."""
        return [m for m in self.modules() if isinstance(m, BatchNorm2d)]

    def set_calibrating(self, on):
        """Let the activation ranges follow the batches, or freeze them."""
        for activation in self.activations:
            activation.calibrating = on

    def stored_statistics(self):
        """The (running mean, running variance) of each BatchNorm layer, each (C_l,)."""
        return [(norm.running_mean, norm.running_var) for norm in self.norms]

    def with_statistics(self, x, fused=False):
        """Logits, and the (mean, biased variance) of each BatchNorm layer's input, each (C_l,).

        ``fused`` is faster, and gives the BatchNorms' scales and shifts no gradient.
        """
        norms = self.norms
        for norm in norms:
            norm.collect = "fused" if fused else "plain"
        logits = self(x)
        statistics = [norm.statistics for norm in norms]
        for norm in norms:
            norm.collect = norm.statistics = None
        return logits, statistics


class ResNet(Classifier):
    """A ResNet for CIFAR or for ImageNet.

    ``blocks`` and ``widths`` have one entry per stage; (3, 3, 3) is CIFAR's ResNet-20, whose
    shortcuts depend on ``average`` and ``pad_end`` (see ``Block``). ImageNet's ResNets have
    ``projection`` shortcuts, a stem of ``stem_size`` 7 and stride 2, and a max-``pool``. If
    ``stride_first`` is not None, blocks are bottlenecks (see ``Bottleneck``). ``bits`` is None or
    (weight bits, activation bits).
    """

    def __init__(
        self,
        blocks=(3, 3, 3),
        widths=(16, 32, 64),
        classes=10,
        bits=None,
        *,
        projection=False,
        average=False,
        pad_end=False,
        stem_size=3,
        pool=False,
        stride_first=None,
    ):
        super().__init__()
        self.shape = {
            "blocks": tuple(blocks),
            "widths": tuple(widths),
            "classes": classes,
            "projection": projection,
            "average": average,
            "pad_end": pad_end,
            "stem_size": stem_size,
            "pool": pool,
            "stride_first": stride_first,
        }
        bits = bits or (None, None)
        self.conv1 = Conv2d(3, widths[0], 2 if stem_size == 7 else 1, bits[0], stem_size)
        self.bn1 = BatchNorm2d(widths[0])
        self.act1 = Activation(bits[1])
        inputs = widths[0]
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                if stride_first is None:
                    stage.append(Block(inputs, width, stride, *bits, projection, average, pad_end))
                    inputs = width
                else:
                    stage.append(Bottleneck(inputs, width, stride, *bits, stride_first))
                    inputs = 4 * width
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.linear = Linear(inputs, classes, bits[0])

    def forward(self, x):
        """(B, 3, H, W) -> (B, classes)."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.shape["pool"]:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for i in range(len(self.shape["blocks"])):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(x.mean(dim=(2, 3)))


class MobileNetV2(Classifier):
    """MobileNetV2 with a dense classifier.

    ``widths``: channels of the stem, of the seven stages and of the head; ``expand_first``: whether
    the first block has an expansion, of factor 1.
    """

    BLOCKS = (1, 2, 3, 4, 3, 3, 1)
    STRIDES = (1, 2, 2, 2, 1, 2, 1)

    def __init__(self, widths, classes=1000, bits=None, *, expand_first=False):
        super().__init__()
        self.shape = {"widths": tuple(widths), "classes": classes, "expand_first": expand_first}
        bits = bits or (None, None)
        stem, *stages, head = widths
        self.conv1 = Conv2d(3, stem, 2, bits[0])
        self.bn1 = BatchNorm2d(stem)
        self.act1 = Activation(bits[1], six=True)
        inputs = stem
        for i, outputs in enumerate(stages):
            stage = []
            for j in range(self.BLOCKS[i]):
                stride = self.STRIDES[i] if j == 0 else 1
                form = (6, True) if i else (1, expand_first)
                stage.append(InvertedResidual(inputs, outputs, stride, *form, *bits))
                inputs = outputs
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.head_conv = Conv2d(inputs, head, 1, bits[0], size=1)
        self.head_bn = BatchNorm2d(head)
        self.head_act = Activation(bits[1], six=True)
        self.linear = Linear(head, classes, bits[0])

    def forward(self, x):
        """(B, 3, H, W) -> (B, classes)."""
        x = self.act1(self.bn1(self.conv1(x)))
        for i in range(len(self.BLOCKS)):
            x = getattr(self, f"layer{i + 1}")(x)
        x = self.head_act(self.head_bn(self.head_conv(x)))
        return self.linear(x.mean(dim=(2, 3)))


# Row k marks the taps of a 3-tap kernel that multiply input pixel i for output pixel 2 i - 1 + k,
# if each input pixel is first repeated. Each output pixel depends on two input pixels.
_TAPS = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])


class ClassNorm2d(nn.Module):
    """BatchNorm by the batch's statistics, with a scale and a bias for each class."""

    def __init__(self, classes, channels, eps):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps, affine=False, track_running_stats=False)
        self.weight = nn.Parameter(torch.ones(classes, channels))
        self.bias = nn.Parameter(torch.zeros(classes, channels))

    def forward(self, x, y):
        """x (B, channels, H, W), y (B,) integers -> the shape of x."""
        scale, shift = (
            F.embedding(y, table)[:, :, None, None] for table in (self.weight, self.bias)
        )
        return self.norm(x) * scale + shift


class Generator(nn.Module):
    """The generator: z (B, 100), labels (B,) -> images (B, 3, size, size).

    ``conditional``: labels choose the scales and biases of the BatchNorms (ImageNet-size); else
    they choose an embedding that multiplies z (CIFAR-size). ``subpixel``: nearest x2 enlargement
    and 3x3 convolution are computed as four equivalent 2x2 convolutions of the small image.
    BatchNorms always use batch statistics.
    """

    def __init__(self, classes=10, size=32, latent=100, subpixel=False, conditional=False):
        super().__init__()
        self.size, self.subpixel = size, subpixel
        self.conditional = classes if conditional else None
        if not conditional:
            self.embedding = nn.Embedding(classes, latent)
        # PyTorch initializes the embedding by N(0, 1), the layers below by U(+-1/sqrt(fan_in)).
        self.dense = nn.Linear(latent, 128 * (size // 4) ** 2)
        self.bn0 = self._norm(128, 1e-5)
        self.conv1 = nn.Conv2d(128, 128, 3, padding=1)
        self.bn1 = self._norm(128, 0.8)
        self.conv2 = nn.Conv2d(128, 64, 3, padding=1)
        self.bn2 = self._norm(64, 0.8)
        self.conv3 = nn.Conv2d(64, 3, 3, padding=1)
        self.bn3 = self._norm(3, 1e-5, affine=False)
        taps = torch.einsum("aj,bk->jkab", _TAPS, _TAPS).reshape(9, 16)
        self.register_buffer("taps", taps, persistent=False)

    def _norm(self, channels, eps, affine=True):
        if affine and self.conditional:
            return ClassNorm2d(self.conditional, channels, eps)
        return nn.BatchNorm2d(channels, eps, affine=affine, track_running_stats=False)

    def forward(self, z, y):
        """z (B, latent), y (B,) integers -> images (B, 3, size, size)."""
        side = self.size // 4
        x = self.dense(z if self.conditional else self.embedding(y) * z)
        of = (y,) if self.conditional else ()
        x = x.view(-1, side, side, 128).permute(0, 3, 1, 2)
        if not self.subpixel:
            x = x.contiguous()  # the plain program keeps PyTorch's default layout throughout
        x = self.bn0(x, *of)
        x = F.leaky_relu(self.bn1(self._upsampled_conv(x, self.conv1), *of), 0.2, inplace=True)
        x = F.leaky_relu(self.bn2(self._upsampled_conv(x, self.conv2), *of), 0.2, inplace=True)
        return self.bn3(torch.tanh(self.conv3(x)))

    def _upsampled_conv(self, x, conv):
        if not self.subpixel:
            return conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        # A transposed convolution of stride 2 with a 4x4 kernel interleaves the four 2x2 ones.
        kernel = conv.weight.reshape(-1, 9) @ self.taps
        kernel = kernel.view(*conv.weight.shape[:2], 4, 4).transpose(0, 1)
        return F.conv_transpose2d(x, kernel, conv.bias, stride=2, padding=1)
