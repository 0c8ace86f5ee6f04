"""A teacher that has learnt nothing, for what does not depend on it, such as speed."""

import jax
import numpy as np

from adadfq_jax import models
from adadfq_jax.teachers import Teacher

_IMAGENET_SIZE, _IMAGENET_CLASSES, _CIFAR_CLASSES = 224, 1000, 10


def random_teacher(architecture: str, image_size: int = 0, classes: int = 0) -> Teacher:
    """Makes a teacher of random weights.

    Args:
      architecture: a name of `models.ARCHITECTURES`.
      image_size: side of its images in pixels; 0 for what is usual for it.
      classes: number of classes; 0 for what is usual for it.

    Raises:
      ConfigError: the name is unknown.
    """
    own_size = models.default_image_size(architecture)
    size = image_size or own_size or _IMAGENET_SIZE
    module = models.build(
        architecture, classes or (_CIFAR_CLASSES if own_size else _IMAGENET_CLASSES)
    )
    variables = models.initial_variables(module, size, jax.random.key(0))
    return Teacher(
        architecture=architecture,
        module=module,
        variables={
            name: jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats")
        },
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
