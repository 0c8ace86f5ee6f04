"""Any converted teacher: all that its file says, and the settings that its network wants.

  adadfq quantize --config=teacher:w4a4 --workdir=runs/teacher

What it sets is in `adadfq_jax/config/presets/teacher.py`,
of which a copy is a start for a configuration of your own.
"""

from adadfq_jax.config.presets.teacher import get_config

__all__ = ["get_config"]
