"""MobileNetV2 on ImageNet, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=imagenet_mobilenet_v2:w4a4 --workdir=runs/mobilenet_v2_w4a4 \\
    --config.teacher.path=mobilenet_v2.pth --config.data.source=folder --config.data.path=val

The paper reports, for pytorchcv's teacher of 73.03 %, the best epoch on the validation set: 28.99
% at w3a3, 65.41 % at w4a4, 71.61 % at w5a5. Learning rates, milestones, warm-up, temperature and
each bit-width's constants follow from the network (`adadfq_jax/config/recipes.py`). Checkpoints of
torchvision and timm fit; for pytorchcv's, the paper's teacher, add
--config.teacher.architecture=mobilenet_v2_pytorchcv (or mobilenet_v2b_pytorchcv).
"""

from adadfq_jax.config.fields import default_config, leave_to_teacher
from adadfq_jax.teachers.normalisation import NORMALISATIONS


def get_config(bits: str = "w4a4"):
    """Returns the configuration for bit-widths written like `w4a4`."""
    config = leave_to_teacher(default_config(bits))
    config.teacher.architecture = "mobilenet_v2"
    config.teacher.image_size, config.teacher.classes = 224, 1000
    config.data.mean, config.data.std = NORMALISATIONS["imagenet"]
    config.evaluation.every_epochs = 20  # 50,000 images cost as much as hundreds of steps
    return config
