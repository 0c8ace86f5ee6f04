"""Every field with its default (`adadfq_jax/config/fields.py`): the paper's CIFAR settings."""

from adadfq_jax.config.fields import default_config


def get_config(bits: str = "w4a4"):
    """Returns the configuration for bit-widths written like `w4a4`."""
    return default_config(bits)
