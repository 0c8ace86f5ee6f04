"""ResNet-20 on CIFAR-100, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=cifar100_resnet20:w4a4 --workdir=runs/cifar100_resnet20

What it sets is in `adadfq_jax/config/presets/cifar100_resnet20.py`,
of which a copy is a start for a configuration of your own.
"""

from adadfq_jax.config.presets.cifar100_resnet20 import get_config

__all__ = ["get_config"]
