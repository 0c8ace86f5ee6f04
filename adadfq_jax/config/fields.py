"""Every constant of a run: its field, its default, its meaning, its check.

The defaults are the paper's for ResNet-20 on CIFAR (Qian et al., CVPR 2023, and the authors'
program). `IDENTITY_EXEMPT` lists the fields that may change when a run is resumed; all others make
up its identity.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from adadfq_jax.quantization.bits import parse_bits

DATA_SOURCES = ("none", "npz", "folder", "tfds:NAME")

# By format of exported students, the suffixes of its files; the first one is usual, and none is of
# two formats.
EXPORT_FORMATS = {
    "integers": (".safetensors",),
    "onnx": (".onnx",),
    "stablehlo": (".stablehlo",),
    "pytorch": (".pth", ".pt"),
}
FORMAT_BY_SUFFIX = {
    suffix: name for name, suffixes in EXPORT_FORMATS.items() for suffix in suffixes
}

# What may be None until a teacher is known: `recipes` then fills in what its network wants.
FROM_TEACHER = {
    "warmup_epochs": int,
    "game.temperature": float,
    "generator.conditioning": str,
    "generator.milestones": tuple,
    "student.learning_rate": float,
    "student.milestones": tuple,
}

# What is None until then, unless it is set: the method has its own, by network for some.
FROM_METHOD = {
    "game.alpha_ds": float,
    "game.alpha_as": float,
    "game.lambda_l": float,
    "game.lambda_u": float,
    "game.gamma": float,
    "quant.ranges": str,
    "quant.learned_ranges": bool,
    "samples.procedural": int,
    "samples.cutmix": float,
    "student.optimizer": str,
}


def default_config(
    bits: str | None = None, *, weight_bits: int = 4, activation_bits: int = 4
) -> ml_collections.ConfigDict:
    """Returns the complete configuration, locked: fields can be set but not added.

    Args:
      bits: both bit-widths as one word, `w4a4`; empty or None for the next two.
      weight_bits: of every convolution and dense layer, 1 to 8.
      activation_bits: of every quantized ReLU, 1 to 8.

    Raises:
      ConfigError: a bit-width is malformed or out of range.
    """
    if bits:
        weight_bits, activation_bits = parse_bits(bits)
    config = ml_collections.ConfigDict()

    config.seed = 0  # of every random draw
    config.batch_size = 16  # images a step, over all devices
    config.epochs = 400  # in all, calibration and warm-up included
    config.steps_per_epoch = 200
    config.calibration_epochs = 4  # first epochs, in which activation ranges follow the images
    config.warmup_epochs = 4  # epochs (calibration included) before the student learns
    config.devices = 0  # 0: all there are
    config.remat = False  # make the activations inside of blocks again, instead of keeping them
    config.steps_per_dispatch = 0  # steps per call of the device; 0: 1 on CPU, else 50
    config.export = ""  # formats in which a finished run leaves its student: "integers,onnx"
    config.log_every_steps = 50

    config.teacher = teacher = ml_collections.ConfigDict()
    teacher.path = config_dict.placeholder(str)  # a checkpoint; not needed for one in memory
    teacher.architecture = config_dict.placeholder(str)  # needed where the file does not say
    teacher.image_size = 0  # pixels; 0: as its file says
    teacher.classes = 0  # 0: as its file says
    teacher.digest = config_dict.placeholder(str)  # SHA-256 of its variables; filled in by the run

    config.data = data = ml_collections.ConfigDict()
    data.source = "none"  # the evaluation set: "none", "npz", "folder" or "tfds:NAME"
    data.path = config_dict.placeholder(str)  # file, folder, or tensorflow-datasets' data_dir
    data.labels = config_dict.placeholder(str)  # of a folder: a file with the class of each folder
    data.mean = ()  # per channel, of pixels in [0, 1]; empty: as the teacher's file says
    data.std = ()

    config.precision = precision = ml_collections.ConfigDict()
    precision.teacher = "float32"  # or "bfloat16", as its gradient to the images
    precision.generator = "float32"  # or "bfloat16": its convolutions
    precision.student = "float32"  # nothing else: its codes would not be those of its exports

    config.quant = quant = ml_collections.ConfigDict()
    quant.weight_bits = weight_bits
    quant.activation_bits = activation_bits
    quant.overrides = ()  # exceptions by layer name: ("stem_*=w8a8", "classifier=w8")

    # None here as well: the method's own; for adadfq "minmax", False, 0, 0.0 and "sgd".
    quant.ranges = config_dict.placeholder(str)  # or "least_error"
    quant.learned_ranges = config_dict.placeholder(bool)  # kernels' too, by the student's optimizer
    config.samples = samples = ml_collections.ConfigDict()
    samples.procedural = config_dict.placeholder(int)  # images of a formula for each of G's
    samples.cutmix = config_dict.placeholder(float)  # share of those cut together with one of G's

    config.game = game = ml_collections.ConfigDict()
    game.method = "adadfq"  # or "adadfq_plus", "adasg", "gdfq", an ablation: see `methods.py`
    # None: the method's own; for adadfq 0.2, 0.1, 0.1, 0.8 and 1 (`methods.py`, `recipes.py`).
    game.alpha_ds = config_dict.placeholder(float)  # weight of the disagreement loss
    game.alpha_as = config_dict.placeholder(float)  # weight of the agreement loss
    game.lambda_l = config_dict.placeholder(float)  # of H', below which samples are too hard
    game.lambda_u = config_dict.placeholder(float)  # of H', above which samples are too easy
    game.gamma = config_dict.placeholder(float)  # weight of the BatchNorm statistics loss
    game.margin_weight = 1.0  # weight of the margin loss; 0: no margin
    game.beta = 1.0  # weight of the balance loss
    game.temperature = 20.0  # T of the student's loss
    game.kl_reduction = "elements"  # of gdfq: mean over "elements" (released) or "batch" (printed)

    config.generator = generator = ml_collections.ConfigDict()
    generator.conditioning = "embedding"  # of the class; or "batch_norm", for ImageNet-size images
    generator.learning_rate = 1e-3  # Adam
    generator.beta1 = 0.5
    generator.beta2 = 0.999
    generator.milestones = (100, 200, 300)  # epochs, counted from the first calibration step
    generator.decay = 0.1  # factor on the learning rate at each milestone

    config.student = student = ml_collections.ConfigDict()
    student.optimizer = config_dict.placeholder(str)  # None: the method's; "sgd" or "adam"
    student.learning_rate = 1e-4  # of SGD, as are the next four
    student.momentum = 0.9  # Nesterov
    student.weight_decay = 1e-4  # on every parameter
    student.milestones = (100, 200, 300)
    student.decay = 0.1
    # Of Adam: highest step at 3 bits, relative to a tensor's root mean square; less at more bits.
    student.relative_rate = 5e-3

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.every_epochs = 1
    evaluation.subset = 0  # images of the measurements before the last one; 0: all
    evaluation.batch_size = 256
    evaluation.generated_images = 1024  # held-out generated images for teacher agreement

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_seconds = 60.0  # 0: never by time
    checkpoint.every_steps = 0  # 0: never by steps
    return config.lock()


def leave_to_teacher(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Empties the fields of `FROM_TEACHER`, so that they follow from the teacher's network.

    Args:
      config: of `default_config`.

    Returns:
      The same configuration, in which each of those fields can still be set.
    """
    with config.unlocked():
        for field, kind in FROM_TEACHER.items():
            config.update_from_flattened_dict({field: config_dict.placeholder(kind)})
    return config


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of nested sections by their dotted names, each after a prefix."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
