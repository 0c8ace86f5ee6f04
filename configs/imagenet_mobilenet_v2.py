"""MobileNetV2 on ImageNet, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=imagenet_mobilenet_v2:w4a4 --workdir=runs/imagenet_mobilenet_v2

What it sets is in `adadfq_jax/config/presets/imagenet_mobilenet_v2.py`,
of which a copy is a start for a configuration of your own.
"""

from adadfq_jax.config.presets.imagenet_mobilenet_v2 import get_config

__all__ = ["get_config"]
