"""Trains small teachers of other shapes than the CIFAR-10 ResNet-20, to try methods on.

  pip install -e .[torch]
  python adadfq_jax/assets/train_teachers.py --images=test.npz --output=teachers

  resnet32    deep and narrow: 15 blocks of 16 to 64 channels
  wide        shallow and wide: 3 blocks of 48 to 192 channels, a 5x5 stem
  separable   depthwise separable blocks with SiLU
  turned      a ResNet-20 of 40 classes: what an image shows, and by how many quarters it is turned

They learn from 8,000 of CIFAR-10's 10,000 test images (`x`, uint8 (10000, 32, 32, 3), and `y`), and
2,000 are held out to measure on. So their accuracy is far from what CIFAR-10's training images
would give: they serve to compare methods with each other, and with nothing else. Writes
`NAME.safetensors` of each, `heldout.npz` and, for the 40 classes, `heldout_turned.npz`.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import adadfq_jax
from adadfq_jax.data.dataset import from_arrays
from adadfq_jax.data.npz import load_npz
from adadfq_jax.errors import DataError

_TRAINED = 8000
_TURNS = 4
# Share of the steps on images of half the side, which cost a quarter.
_SMALL_FIRST = 0.6
_SHIFT, _HOLE = 4, 8
_BATCH, _LEARNING_RATE, _WEIGHT_DECAY, _MOMENTUM = 64, 0.1, 5e-4, 0.9


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list:
    """A convolution that keeps the image's size, or halves it, and its BatchNorm."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class _Basic(nn.Module):
    """A basic block of a ResNet, with a projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.branch = nn.Sequential(
            *_conv(inputs, outputs, 3, stride), nn.ReLU(), *_conv(outputs, outputs, 3)
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Sequential(*([] if same else _conv(inputs, outputs, 1, stride)))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, in, H, W) to (B, out, H / stride, W / stride)."""
        return self.relu(self.branch(x) + self.shortcut(x))


class _Separable(nn.Module):
    """An inverted residual with SiLU: a wider layer, a depthwise convolution, and back."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        wide = 3 * inputs
        self.branch = nn.Sequential(
            *_conv(inputs, wide, 1),
            nn.SiLU(),
            *_conv(wide, wide, 3, stride, groups=wide),
            nn.SiLU(),
            *_conv(wide, outputs, 1),
        )
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, in, H, W) to (B, out, H / stride, W / stride)."""
        return self.branch(x) + x if self.residual else self.branch(x)


def _network(block: type, widths: tuple, blocks: int, stem: int, classes: int = 10) -> nn.Module:
    activation = nn.SiLU if block is _Separable else nn.ReLU
    layers = [*_conv(3, widths[0], stem), activation()]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for index in range(blocks):
            layers.append(block(inputs, width, 2 if stage and not index else 1))
            inputs = width
    if block is _Separable:  # whose blocks end without an activation
        layers += [*_conv(inputs, 2 * inputs, 1), nn.SiLU()]
        inputs *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


# By name: (what makes the network, epochs).
NETWORKS = {
    "resnet32": (lambda: _network(_Basic, (16, 32, 64), 5, 3), 20),
    "wide": (lambda: _network(_Basic, (48, 96, 192), 1, 5), 18),
    "separable": (lambda: _network(_Separable, (24, 40, 80), 2, 3), 16),
    "turned": (lambda: _network(_Basic, (16, 32, 64), 3, 3, 10 * _TURNS), 22),
}


def split(path: str | Path) -> tuple[tuple, tuple]:
    """Returns ((images, labels) to train on, (images, labels) held out), the file's in disorder.

    Raises:
      DataError: the file cannot be read, or holds no such images.
    """
    dataset = load_npz(Path(path))
    images, labels = map(np.stack, zip(*dataset.records, strict=True))
    (count, height, width, channels), (lowest, highest) = images.shape, dataset.labels
    if count <= _TRAINED or height != width or channels != 3 or lowest < 0 or highest > 9:
        raise DataError(
            f"{str(path)!r} must hold more than {_TRAINED:,} square images of 3 channels in the "
            f"classes 0 to 9, and holds {images.shape} in the classes {lowest} to {highest}."
        )
    order = np.random.default_rng(0).permutation(len(labels))
    return tuple((images[part], labels[part]) for part in np.split(order, [_TRAINED]))


def turned(images: np.ndarray, labels: np.ndarray, turns: np.ndarray) -> tuple:
    """Turns images (N, s, s, 3) by quarters (N,): returns them, and labels of 40 classes."""
    images = np.stack([np.rot90(x, k) for x, k in zip(images, turns, strict=True)])
    return images, labels + 10 * turns


def _augmented(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors half of the images, shifts all by up to 4 pixels, and greys out a square in each."""
    count, side = images.shape[:2]
    border = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
    padded = np.pad(images, border, mode="reflect")
    rows, columns = rng.integers(0, 2 * _SHIFT + 1, (2, count, 1)) + np.arange(side)
    mirrored = rng.random(count) < 0.5
    columns[mirrored] = columns[mirrored, ::-1]
    shifted = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    top, left = rng.integers(0, side - _HOLE + 1, (2, count, 1))
    down = (np.arange(side) >= top) & (np.arange(side) < top + _HOLE)
    across = (np.arange(side) >= left) & (np.arange(side) < left + _HOLE)
    shifted[down[:, :, None] & across[:, None, :]] = 127
    return shifted


def train(name: str, images: np.ndarray, labels: np.ndarray, epochs: int | None = None):
    """Trains a network of `NETWORKS` on uint8 images (N, s, s, 3) and labels (N,).

    Returns:
      The `Teacher`, read by `adadfq_jax.from_torch`.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    make, usual_epochs = NETWORKS[name]
    network = make().to(memory_format=torch.channels_last)
    mean, std = (tuple(f((0, 1, 2)) / 255) for f in (images.mean, images.std))
    steps = (epochs or usual_epochs) * (len(images) // _BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), _LEARNING_RATE, _MOMENTUM, weight_decay=_WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=max(steps, 2), cycle_momentum=False
    )
    order = np.empty(0, int)
    for step in range(steps):
        if len(order) < _BATCH:
            order = rng.permutation(len(images))
        index, order = order[:_BATCH], order[_BATCH:]
        x, y = _augmented(images[index], rng), labels[index]
        if name == "turned":
            x, y = turned(x, y, rng.integers(0, _TURNS, len(y)))
        x = (torch.tensor(x) / 255 - torch.tensor(mean)) / torch.tensor(std)
        # From here on in PyTorch's order of axes, with the channels still last in memory.
        x = x.float().permute(0, 3, 1, 2)
        if step < _SMALL_FIRST * steps:
            x = functional.avg_pool2d(x, 2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(network(x).float(), torch.tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 125 == 0:
            print(f"{name}: step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    size = images.shape[1]
    network = network.eval().to(memory_format=torch.contiguous_format)
    return adadfq_jax.from_torch(network, image_size=size, mean=mean, std=std, name=name)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or words in its place."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", required=True, help="CIFAR-10's test images, an .npz")
    parser.add_argument("--output", required=True, type=Path, help="folder of what is written")
    parser.add_argument("--name", choices=NETWORKS, action="append", help="default: all")
    return parser.parse_args(words)


def main() -> None:
    """Trains, measures and writes."""
    arguments = parse()
    torch.set_num_threads(1)
    try:
        trained, heldout = split(arguments.images)
        arguments.output.mkdir(parents=True, exist_ok=True)
    except DataError as error:
        raise SystemExit(f"--images: {error}") from error
    except OSError as error:
        raise SystemExit(f"--output={arguments.output}: {error.strerror}.") from error
    heldout_turned = turned(*heldout, np.arange(len(heldout[1])) % _TURNS)
    for name, (x, y) in (("heldout", heldout), ("heldout_turned", heldout_turned)):
        np.savez_compressed(arguments.output / f"{name}.npz", x=x, y=y)
    for name in arguments.name or NETWORKS:
        teacher = train(name, *trained)
        adadfq_jax.save_teacher(teacher, arguments.output / f"{name}.safetensors")
        seen = heldout_turned if name == "turned" else heldout
        accuracy = adadfq_jax.evaluate(teacher, from_arrays(*seen))["top1"]
        print(f"{name}: top-1 {accuracy:.2%} on {len(seen[1])} held-out images", flush=True)


if __name__ == "__main__":
    main()
