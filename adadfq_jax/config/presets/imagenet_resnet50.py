"""ResNet-50 on ImageNet, the paper's schedule: 400 epochs of 200 steps of 16 images.

  adadfq quantize --config=imagenet_resnet50:w4a4 --workdir=runs/resnet50_w4a4 \\
    --config.teacher.path=resnet50.pth --config.data.source=folder --config.data.path=val

The paper reports, for pytorchcv's teacher of 77.73 %, the best epoch on the validation set: 17.63
% at w3a3, 68.38 % at w4a4, 76.03 % at w5a5. Learning rates, milestones, warm-up, temperature and
each bit-width's constants follow from the network (`adadfq_jax/config/recipes.py`). Expected is the
stride on the 3x3 convolution, as in torchvision's and timm's checkpoints and pytorchcv's
resnet50b; for pytorchcv's resnet50 add --config.teacher.architecture=resnet50_stride1x1.
"""

from adadfq_jax.config.fields import default_config, leave_to_teacher
from adadfq_jax.teachers.normalisation import NORMALISATIONS


def get_config(bits: str = "w4a4"):
    """Returns the configuration for bit-widths written like `w4a4`."""
    config = leave_to_teacher(default_config(bits))
    config.teacher.architecture = "resnet50_stride3x3"
    config.teacher.image_size, config.teacher.classes = 224, 1000
    config.data.mean, config.data.std = NORMALISATIONS["imagenet"]
    config.evaluation.every_epochs = 20  # 50,000 images cost as much as hundreds of steps
    return config
