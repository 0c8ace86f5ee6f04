"""The built-in example: a teacher of handwritten digits, quantized to 2-bit activations.

  adadfq quantize --config=digits_resnet20:w4a2 --workdir=runs/digits_resnet20

What it sets is in `adadfq_jax/config/presets/digits_resnet20.py`,
of which a copy is a start for a configuration of your own.
"""

from adadfq_jax.config.presets.digits_resnet20 import get_config

__all__ = ["get_config"]
