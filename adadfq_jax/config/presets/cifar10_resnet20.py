"""ResNet-20 on CIFAR-10, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=cifar10_resnet20:w4a4 --workdir=runs/cifar10_w4a4 \\
    --config.teacher.path=resnet20.th --config.data.source=npz --config.data.path=cifar10_test.npz

The paper reports, for a teacher of 93.89 % (pytorchcv's), the best epoch on the test set:
84.89 % at w3a3, 92.31 % at w4a4, 93.81 % at w5a5. For a teacher with another normalisation than the
one below, such as pytorchcv's, convert it and use `teacher`.
"""

from adadfq_jax.config.fields import default_config
from adadfq_jax.teachers.normalisation import NORMALISATIONS


def get_config(bits: str = "w4a4"):
    """Returns the configuration for bit-widths written like `w4a4`."""
    config = default_config(bits)
    config.teacher.architecture = "resnet20_cifar"
    # What the public checkpoints of the original CIFAR ResNets were trained with.
    config.data.mean, config.data.std = NORMALISATIONS["imagenet"]
    return config
