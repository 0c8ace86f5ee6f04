"""The built-in example: a ResNet-20 teacher of handwritten digits, quantized to 2-bit activations.

./launch/local.sh configs/digits_resnet20.py
"""

from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST
from adadfq_jax.config import default_config


def get_config(bits: str = "w4a2"):
    """Returns the configuration for bit-widths written like `w4a2`."""
    config = default_config(bits)
    config.teacher.path = str(DIGITS_TEACHER)
    config.data.source = "npz"
    config.data.path = str(DIGITS_TEST)
    config.steps_per_epoch = 100
    config.calibration_epochs = config.warmup_epochs = 6
    config.epochs = 20
    config.generator.milestones = (12, 16)
    config.student.milestones = (12, 16)
    return config
