"""The built-in example: a teacher of handwritten digits, quantized to 2-bit activations.

  ./launch/local.sh digits_resnet20

Expected (seeds 0 to 2, 360 test images): see configs/RESULTS.md. The first and the last layer keep
8 bits, as is common; without that, w4a2 still works but ends about a point lower on validation
images.

The schedule was chosen on the validation images. The generator's learning rate falls early so that
it, and with it the ranges, has settled when calibration ends; what is left to repair then is the
bit-width's fault alone.
"""

from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST
from adadfq_jax.config.fields import default_config


def get_config(bits: str = "w4a2"):
    """Returns the configuration for bit-widths written like `w4a2`."""
    config = default_config(bits)
    config.teacher.path = str(DIGITS_TEACHER)
    config.data.source = "npz"
    config.data.path = str(DIGITS_TEST)
    config.quant.overrides = ("stem_*=w8a8", "classifier=w8")
    config.steps_per_epoch = 200
    config.calibration_epochs = config.warmup_epochs = 4
    config.epochs = 9
    config.generator.milestones = (1, 2)
    config.student.milestones = (7, 8)
    return config
