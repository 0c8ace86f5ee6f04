"""ResNet-50 on ImageNet, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=imagenet_resnet50:w4a4 --workdir=runs/imagenet_resnet50

What it sets is in `adadfq_jax/config/presets/imagenet_resnet50.py`,
of which a copy is a start for a configuration of your own.
"""

from adadfq_jax.config.presets.imagenet_resnet50 import get_config

__all__ = ["get_config"]
