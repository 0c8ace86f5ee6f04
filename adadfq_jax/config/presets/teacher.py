"""Any converted teacher: all that its file says, and the settings that its network wants.

  adadfq convert --input=resnet20.th --output=teacher.safetensors --mean=imagenet \\
    --architecture=resnet20_cifar
  adadfq quantize --config=teacher:w4a4 --workdir=runs/teacher_w4a4 \\
    --config.teacher.path=teacher.safetensors

Network, classes, image size, normalisation, learning rate, milestones, warm-up and temperature
follow from the file (`adadfq_jax/config/recipes.py`); each can be set nevertheless.
--config.epochs=40 plays the beginning of the paper's 400 epochs. No data are needed;
--config.data.source=npz --config.data.path=test.npz (or folder, or tfds:NAME) only measures.
"""

from adadfq_jax.config.fields import default_config, leave_to_teacher


def get_config(bits: str = "w4a4"):
    """Returns the configuration for bit-widths written like `w4a4`."""
    return leave_to_teacher(default_config(bits))
