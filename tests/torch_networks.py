"""PyTorch networks as their original programs write them: keys, strides, order of layers.

Short transcriptions of akamaster/pytorch_resnet_cifar10, kuangliu/pytorch-cifar, torchvision and
timm, with the shortcuts without parameters of several others; pytorchcv's networks come from that
package itself.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv(inputs, outputs, size, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Block(nn.Module):
    """A basic block or a bottleneck (`stride_first` not None) with any kind of shortcut.

    `option_a` is for one without parameters: what makes the image smaller, `subsample` or
    `average`, and the share of the zero channels that comes first.
    """

    def __init__(self, inputs, width, stride, shortcut, stride_first, option_a):
        super().__init__()
        self.bottleneck = stride_first is not None
        outputs = 4 * width if self.bottleneck else width
        if self.bottleneck:
            self.conv1 = conv(inputs, width, 1, stride if stride_first else 1)
            self.conv2 = conv(width, width, 3, 1 if stride_first else stride)
            self.conv3 = conv(width, outputs, 1)
            self.bn3 = nn.BatchNorm2d(outputs)
        else:
            self.conv1 = conv(inputs, width, 3, stride)
            self.conv2 = conv(width, width, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.added = outputs - inputs
        self.name, self.option_a = shortcut, option_a
        if shortcut is not None and (stride != 1 or self.added):
            projection = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
            setattr(self, shortcut, projection)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y)))
        if self.name is not None and hasattr(self, self.name):
            x = getattr(self, self.name)(x)
        elif self.added:
            smaller, share = self.option_a
            before = int(share * self.added)
            zeros = x.new_zeros(len(x), self.added, x.shape[2] // 2, x.shape[3] // 2)
            x = torch.cat([zeros[:, :before], smaller(x), zeros[:, before:]], 1)
        return F.relu(y + x)


def subsample(x):
    return x[:, :, ::2, ::2]


def average(x):
    return F.avg_pool2d(x, 2)


class ResNet(nn.Module):
    def __init__(
        self,
        sizes,
        width=64,
        classes=10,
        stem=7,
        pool=True,
        shortcut="downsample",
        classifier="fc",
        stride_first=None,
        option_a=(subsample, 0.5),  # akamaster's
    ):
        super().__init__()
        self.conv1 = conv(3, width, stem, 2 if stem == 7 else 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = pool
        channels, self.stages, self.classifier = width, len(sizes), classifier
        for stage, size in enumerate(sizes):
            blocks = []
            for block in range(size):
                stride = 2 if stage and not block else 1
                form = shortcut, stride_first, option_a
                blocks.append(Block(channels, width << stage, stride, *form))
                channels = (width << stage) * (1 if stride_first is None else 4)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        setattr(self, classifier, nn.Linear(channels, classes))

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return getattr(self, self.classifier)(x.mean((2, 3)))


def original_cifar(n, shortcut=None, classes=10, width=16, classifier="linear", **kind):
    """akamaster's; `shortcut="shortcut"` is its option B."""
    return ResNet((n, n, n), width, classes, 3, False, shortcut, classifier, **kind)


def kuangliu(sizes=(2, 2, 2, 2), classes=10, width=64):
    return ResNet(sizes, width, classes, 3, False, "shortcut", "linear")


# Expansion factor, channels, blocks, stride.
_MOBILENET = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def make_divisible(value):
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def conv_norm_relu6(inputs, outputs, size, stride=1, groups=1):
    layers = conv(inputs, outputs, size, stride, groups), nn.BatchNorm2d(outputs), nn.ReLU6()
    return nn.Sequential(*layers)


class TorchvisionInvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        inner = inputs * factor
        layers = [conv_norm_relu6(inputs, inner, 1)] if factor != 1 else []
        layers += [
            conv_norm_relu6(inner, inner, 3, stride, inner),
            conv(inner, outputs, 1),
            nn.BatchNorm2d(outputs),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.residual else self.conv(x)


class TorchvisionMobileNetV2(nn.Module):
    """With `strides` of the stem and the second stage, which some change for CIFAR's images."""

    def __init__(self, classes=1000, multiplier=1.0, strides=(2, 2)):
        super().__init__()
        channels = make_divisible(32 * multiplier)
        last = make_divisible(1280 * max(1.0, multiplier))
        features = [conv_norm_relu6(3, channels, 3, strides[0])]
        for factor, width, blocks, stride in _MOBILENET:
            if width == 24:
                stride = strides[1]
            outputs = make_divisible(width * multiplier)
            for block in range(blocks):
                features.append(
                    TorchvisionInvertedResidual(channels, outputs, 1 if block else stride, factor)
                )
                channels = outputs
        features.append(conv_norm_relu6(channels, last, 1))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class TimmDepthwiseSeparable(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv_dw, self.bn1 = conv(inputs, inputs, 3, 1, inputs), nn.BatchNorm2d(inputs)
        self.conv_pw, self.bn2 = conv(inputs, outputs, 1), nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))


class TimmInvertedResidual(nn.Module):
    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        inner = inputs * factor
        self.conv_pw, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv_dw, self.bn2 = conv(inner, inner, 3, stride, inner), nn.BatchNorm2d(inner)
        self.conv_pwl, self.bn3 = conv(inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = F.relu6(self.bn1(self.conv_pw(x)))
        y = self.bn3(self.conv_pwl(F.relu6(self.bn2(self.conv_dw(y)))))
        return x + y if self.residual else y


class TimmMobileNetV2(nn.Module):
    def __init__(self, classes=1000, multiplier=1.0):
        super().__init__()
        channels = make_divisible(32 * multiplier)
        head = max(1280, make_divisible(1280 * multiplier))
        self.conv_stem, self.bn1 = conv(3, channels, 3, 2), nn.BatchNorm2d(channels)
        stages = []
        for factor, width, blocks, stride in _MOBILENET:
            outputs = make_divisible(width * multiplier)
            stage = []
            for block in range(blocks):
                if factor == 1:
                    stage.append(TimmDepthwiseSeparable(channels, outputs))
                else:
                    strides = 1 if block else stride
                    stage.append(TimmInvertedResidual(channels, outputs, strides, factor))
                channels = outputs
            stages.append(nn.Sequential(*stage))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = conv(channels, head, 1), nn.BatchNorm2d(head)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x):
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        return self.classifier(F.relu6(self.bn2(self.conv_head(x))).mean((2, 3)))


def disturb(network, seed=0):
    """Gives a network random weights, and BatchNorms that no two channels or orders leave equal."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.uniform_(low, high, generator=generator)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    uniform(module.bias, -1, 1)
            elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                if module.affine:
                    uniform(module.weight, 0.5, 1.5)
                    uniform(module.bias, -0.3, 0.3)
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.5, 1.5)
    return network.eval()
