"""ResNet-20 on CIFAR-100, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=cifar100_resnet20:w4a4 --workdir=runs/cifar100_w4a4 \\
    --config.teacher.path=resnet20_cifar100.pth \\
    --config.data.source=tfds:cifar100 --config.data.path=tensorflow_datasets

The paper reports, for pytorchcv's teacher of 70.33 %, the best epoch on the test set: 52.74 % at
w3a3, 66.81 % at w4a4, 69.93 % at w5a5. The normalisation below is that teacher's; others are
converted first and use `teacher`.
"""

from adadfq_jax.config.fields import default_config
from adadfq_jax.teachers.normalisation import NORMALISATIONS


def get_config(bits: str = "w4a4"):
    """Returns the configuration for bit-widths written like `w4a4`."""
    config = default_config(bits)
    config.teacher.architecture, config.teacher.classes = "resnet20_cifar", 100
    config.data.mean, config.data.std = NORMALISATIONS["cifar10-pytorchcv"]
    return config
