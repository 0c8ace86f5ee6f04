"""A teacher that has learnt nothing, for what does not depend on it, such as speed."""

from pathlib import Path

import jax
import ml_collections
import numpy as np

from adadfq_jax.models import registry
from adadfq_jax.models.network import Teacher
from adadfq_jax.teachers.load import teacher_of

_DEFAULT_NETWORK = "resnet20_cifar"

_IMAGENET_SIZE, _IMAGENET_CLASSES, _CIFAR_CLASSES = 224, 1000, 10

_MEAN, _STD = (0.5,) * 3, (0.25,) * 3


def random_teacher(
    architecture: str,
    image_size: int = 0,
    classes: int = 0,
    mean: tuple[float, ...] = _MEAN,
    std: tuple[float, ...] = _STD,
) -> Teacher:
    """Makes a teacher of random weights.

    Args:
      architecture: a name of `registry.ARCHITECTURES`.
      image_size: side of its images in pixels; 0 for what is usual for it.
      classes: number of classes; 0 for what is usual for it.
      mean, std: the normalisation of its images, of pixels in [0, 1].

    Raises:
      ConfigError: the name is unknown.
    """
    own_size = registry.default_image_size(architecture)
    size = image_size or own_size or _IMAGENET_SIZE
    module = registry.build(
        architecture, classes or (_CIFAR_CLASSES if own_size else _IMAGENET_CLASSES)
    )
    variables = registry.initial_variables(module, size, jax.random.key(0))
    return Teacher(
        architecture=architecture,
        module=module,
        variables={
            name: jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats")
        },
        image_size=size,
        mean=mean,
        std=std,
    )


def teacher_or_random(config: ml_collections.ConfigDict) -> tuple[Teacher, str]:
    """Returns the teacher that a configuration names, or one of random weights where it names none.

    Args:
      config: a run's configuration.

    Returns:
      (the teacher, by default of ResNet-20; what its weights are, in words).

    Raises:
      ConfigError, TeacherError: it is unknown, or cannot be read.
    """
    wanted = config.teacher
    if wanted.path is None:
        name = wanted.architecture or _DEFAULT_NETWORK
        normalisation = tuple(config.data.mean) or _MEAN, tuple(config.data.std) or _STD
        made = random_teacher(name, wanted.image_size, wanted.classes, *normalisation)
        return made, "random weights"
    return teacher_of(config), f"weights of {Path(wanted.path).name}"
