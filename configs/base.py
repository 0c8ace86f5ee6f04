"""Every field with its default (`adadfq_jax/config/fields.py`): the paper's CIFAR settings.

  adadfq quantize --config=base:w4a4 --workdir=runs/base

What it sets is in `adadfq_jax/config/presets/base.py`,
of which a copy is a start for a configuration of your own.
"""

from adadfq_jax.config.presets.base import get_config

__all__ = ["get_config"]
