"""Every field of a run's configuration, described once.

The defaults, the checks of one field alone, what makes up a run's identity, the fields in `--help`
and the reference in configs/README.md are all made from `FIELDS`: to add a field, add its entry.
Checks between fields are in `checks.py`. The defaults are the paper's for ResNet-20 on CIFAR (Qian
et al., CVPR 2023, and the authors' program).
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from adadfq_jax.config import bounds
from adadfq_jax.config.bounds import Bound, at_least, between, one_of
from adadfq_jax.config.kinds import INTEGER, NUMBER, NUMBERS, SWITCH, TEXT, TEXTS, Kind
from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.game.methods import KL_REDUCTIONS, METHODS
from adadfq_jax.game.optimizers import STUDENT_OPTIMIZERS
from adadfq_jax.models.generator import CONDITIONINGS
from adadfq_jax.models.layers import PRECISIONS
from adadfq_jax.quantization.bits import parse_bits
from adadfq_jax.quantization.codes import MAX_BITS
from adadfq_jax.quantization.ranges import RANGE_RULES

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


class Filler(enum.Enum):
    """Who fills in a field that is left open."""

    TEACHER = "the teacher"  # its file says it, or its weights
    NETWORK = "the network"  # `recipes.py`, where the field is None
    METHOD = "the method"  # `game/methods.py` and `recipes.py`, where the field is None
    IMAGES = "the images"  # those of `samples.images`


class Resume(enum.Enum):
    """Whether a field may change when a run is resumed; where not, it is part of its identity."""

    FIXED = "fixed"
    FREE = "may change"
    FIXED_BY_ADAM = "may change with sgd"  # Adam's rate falls over the whole schedule


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the configuration.

    Attributes:
      name: dotted, with its section before it.
      kind: the type of its values.
      default: of `default_config`; None where it is left open, or stands for nothing.
      meaning: what it is, in words.
      bound: what it must be besides its type, where it is not None.
      filled_by: who fills it in where it is left open; None for nobody.
      resume: whether it may change when a run is resumed.
    """

    name: str
    kind: Kind
    default: Any
    meaning: str
    bound: Bound = bounds.ANYTHING
    filled_by: Filler | None = None
    resume: Resume = Resume.FIXED

    @property
    def right(self) -> str:
        """What its values must be, type and bound, for a person."""
        if self.kind is TEXT and self.bound.words:
            return self.bound.words
        return ", ".join(filter(None, (self.kind.words, self.bound.words)))

    def check(self, value: Any) -> None:
        """Raises ConfigError, naming field and value, where it cannot have this value."""
        optional = self.default is None
        if value is None and (optional or self.filled_by is Filler.NETWORK):
            return
        words = self.kind.words + (" or None" if optional else "")
        bounds.require(self.kind.holds(value), self.name, value, words)
        self.bound.check(self.name, value)


_TEACHER, _NETWORK, _METHOD = Filler.TEACHER, Filler.NETWORK, Filler.METHOD
_IMAGES = Filler.IMAGES
_FREE, _FIXED_BY_ADAM = Resume.FREE, Resume.FIXED_BY_ADAM
_BITS = between(1, MAX_BITS)
_SHARE = between(0, 1)
_PRECISION = one_of(PRECISIONS)
_ONLY_FLOAT32 = bounds.only(
    "float32",
    "the student's quantizers, ranges and updates stay in float32; precision.teacher and "
    "precision.generator can be 'bfloat16'",
)

# Wrapped by hand, so that an entry takes two lines and not nine.
# fmt: off
_TABLE = (
    Field("seed", INTEGER, 0, "seed of every random draw", bounds.SEED),
    Field("batch_size", INTEGER, 16, "images of a step, over all devices", at_least(2)),
    Field("epochs", INTEGER, 400, "length of the run, calibration and warm-up included",
          at_least(1), resume=_FIXED_BY_ADAM),
    Field("steps_per_epoch", INTEGER, 200, "steps of an epoch", at_least(1)),
    Field("calibration_epochs", INTEGER, 4,
          "first epochs, in which the ranges of activations follow the generated images",
          at_least(1)),
    Field("warmup_epochs", INTEGER, 4, "epochs before the student learns, calibration included",
          at_least(1), _NETWORK),
    Field("devices", INTEGER, 0, "devices to train on; 0: all there are", at_least(0),
          resume=_FREE),
    Field("remat", SWITCH, False,
          "whether activations inside of blocks are computed again for gradients, to save memory",
          resume=_FREE),
    Field("steps_per_dispatch", INTEGER, 0,
          "steps in one call of the device; 0: 1 on CPUs, 50 elsewhere", at_least(0), resume=_FREE),
    Field("export", TEXT, "",
          "formats in which a finished run leaves its student, such as integers,onnx",
          bounds.some_of(EXPORT_FORMATS), resume=_FREE),
    Field("log_every_steps", INTEGER, 50, "steps between logged metrics", at_least(1),
          resume=_FREE),
    # ---- The teacher and the evaluation set ---------------------------------------------------
    Field("teacher.path", TEXT, None, "file of the teacher; not needed for a teacher in memory",
          resume=_FREE),
    Field("teacher.architecture", TEXT, None,
          "name of the teacher's network, needed where its file leaves two open",
          filled_by=_TEACHER),
    Field("teacher.image_size", INTEGER, 0,
          "side of the teacher's images in pixels; 0: as its file says", at_least(0), _TEACHER),
    Field("teacher.classes", INTEGER, 0, "number of the teacher's classes; 0: as its file says",
          at_least(0), _TEACHER),
    Field("teacher.digest", TEXT, None, "SHA-256 of the teacher's variables", filled_by=_TEACHER),
    Field("data.source", TEXT, "none", "kind of the evaluation set, which only measures",
          bounds.SOURCE, resume=_FREE),
    Field("data.path", TEXT, None,
          "file or folder of the evaluation set, or tensorflow-datasets' data_dir", resume=_FREE),
    Field("data.labels", TEXT, None,
          "of a folder: the file that says which class each of its folders is", resume=_FREE),
    Field("data.mean", NUMBERS, (),
          "mean of the teacher's images by channel, pixels in [0, 1]; empty: as its file says",
          filled_by=_TEACHER),
    Field("data.std", NUMBERS, (),
          "standard deviation of the teacher's images, likewise", bounds.ALL_POSITIVE, _TEACHER),
    # ---- How students are quantized -----------------------------------------------------------
    Field("precision.teacher", TEXT, "float32",
          "floating-point type of the teacher and of its gradient to the images", _PRECISION),
    Field("precision.generator", TEXT, "float32",
          "floating-point type of the generator's convolutions", _PRECISION),
    Field("precision.student", TEXT, "float32",
          "floating-point type of the student, whose codes must be those of its exports",
          _ONLY_FLOAT32),
    Field("quant.weight_bits", INTEGER, 4, "bits of every convolution and dense layer", _BITS),
    Field("quant.activation_bits", INTEGER, 4, "bits of every quantized activation", _BITS),
    Field("quant.overrides", TEXTS, (), "exceptions by layer name, of which a later one wins",
          bounds.OVERRIDES),
    Field("quant.ranges", TEXT, None,
          "how ranges follow from values: by their extremes, or with the least quantization error",
          one_of(RANGE_RULES), _METHOD),
    Field("quant.learned_ranges", SWITCH, None,
          "whether adam learns the ranges of activations and kernels with the student",
          filled_by=_METHOD),
    Field("quant.symmetric_weights", SWITCH, False,
          "whether every kernel has the zero point -2^(k-1), as 8-bit integer kernels need it"),
    Field("quant.sums", SWITCH, False,
          "whether what residual sums and convolutions read is quantized in every place"),
    # ---- What the student sees besides generated images ---------------------------------------
    Field("samples.procedural", INTEGER, None,
          "procedural images for each generated one, which the student alone sees", at_least(0),
          _METHOD),
    Field("samples.cutmix", NUMBER, None,
          "share of the procedural images that are cut together with a generated one", _SHARE,
          _METHOD),
    Field("samples.images", TEXT, None,
          "folder or .npz file of a user's images for the student alone, unlabelled: not data-free",
          resume=_FREE),
    Field("samples.images_share", NUMBER, 0.5,
          "share of the procedural images in whose place one of samples.images stands", _SHARE),
    Field("samples.images_count", INTEGER, 0, "number of samples.images", at_least(0), _IMAGES),
    Field("samples.images_digest", TEXT, None, "SHA-256 of their pixels at the teacher's size",
          filled_by=_IMAGES),
    # ---- The game -----------------------------------------------------------------------------
    Field("game.method", TEXT, "adadfq", "losses and constants of the two players",
          one_of(METHODS)),
    Field("game.alpha_ds", NUMBER, None, "weight of the disagreement loss", at_least(0), _METHOD),
    Field("game.alpha_as", NUMBER, None, "weight of the agreement loss", at_least(0), _METHOD),
    Field("game.lambda_l", NUMBER, None, "H' below which samples are too hard", _SHARE, _METHOD),
    Field("game.lambda_u", NUMBER, None, "H' above which samples are too easy", _SHARE, _METHOD),
    Field("game.gamma", NUMBER, None, "weight of the BatchNorm-statistics loss", at_least(0),
          _METHOD),
    Field("game.margin_weight", NUMBER, 1.0, "weight of the margin loss; 0: no margin",
          at_least(0)),
    Field("game.beta", NUMBER, 1.0, "weight of the balance loss", at_least(0)),
    Field("game.temperature", NUMBER, 20.0, "temperature T of the student's loss", bounds.POSITIVE,
          _NETWORK),
    Field("game.kl_reduction", TEXT, "elements",
          "what gdfq's divergence is a mean over: elements in its program, batch in its paper",
          one_of(KL_REDUCTIONS)),
    # ---- The players' optimizers --------------------------------------------------------------
    Field("generator.conditioning", TEXT, "embedding",
          "where labels enter the generator; batch_norm is for images of ImageNet's size",
          one_of(CONDITIONINGS), _NETWORK),
    Field("generator.learning_rate", NUMBER, 1e-3, "learning rate of Adam", bounds.POSITIVE),
    Field("generator.beta1", NUMBER, 0.5, "Adam's decay of the first moment", bounds.BELOW_ONE),
    Field("generator.beta2", NUMBER, 0.999, "Adam's decay of the second moment", bounds.BELOW_ONE),
    Field("generator.milestones", NUMBERS, (100, 200, 300),
          "epochs at which the learning rate falls, counted from the first step of calibration",
          bounds.EPOCHS, _NETWORK),
    Field("generator.decay", NUMBER, 0.1, "factor on the learning rate at a milestone",
          bounds.POSITIVE),
    Field("student.optimizer", TEXT, None, "the student's optimizer", one_of(STUDENT_OPTIMIZERS),
          _METHOD),
    Field("student.learning_rate", NUMBER, 1e-4, "learning rate of sgd", bounds.POSITIVE, _NETWORK),
    Field("student.momentum", NUMBER, 0.9, "Nesterov momentum of sgd", bounds.BELOW_ONE),
    Field("student.weight_decay", NUMBER, 1e-4, "weight decay of sgd, on every parameter",
          at_least(0)),
    Field("student.milestones", NUMBERS, (100, 200, 300),
          "epochs at which sgd's learning rate falls, counted as the generator's", bounds.EPOCHS,
          _NETWORK),
    Field("student.decay", NUMBER, 0.1, "factor on sgd's learning rate at a milestone",
          bounds.POSITIVE),
    Field("student.relative_rate", NUMBER, 5e-3,
          "highest step of adam at 3 bits, relative to a tensor's RMS; less at more bits",
          bounds.POSITIVE, resume=_FIXED_BY_ADAM),
    # ---- Measurements and checkpoints ---------------------------------------------------------
    Field("evaluation.every_epochs", INTEGER, 1, "epochs between measurements", at_least(1),
          resume=_FREE),
    Field("evaluation.subset", INTEGER, 0, "images of the measurements before the last one; 0: all",
          at_least(0), resume=_FREE),
    Field("evaluation.batch_size", INTEGER, 256, "images at a time", at_least(1), resume=_FREE),
    Field("evaluation.generated_images", INTEGER, 1024,
          "held-out generated images on which teacher and student are compared", at_least(1),
          resume=_FREE),
    Field("checkpoint.every_seconds", NUMBER, 60.0, "seconds between checkpoints; 0: never by time",
          at_least(0), resume=_FREE),
    Field("checkpoint.every_steps", INTEGER, 0, "steps between checkpoints; 0: never by steps",
          at_least(0), resume=_FREE),
)
# fmt: on
FIELDS: dict[str, Field] = {field.name: field for field in _TABLE}


class Config(ml_collections.ConfigDict):
    """A configuration, or a section of one, that a person can read and is told of slips in."""

    def __repr__(self) -> str:
        shown = {
            name: "left open" if value is None else repr(value)
            for name, value in flatten(self.to_dict()).items()
        }
        return "\n".join(f"{name:<28}{value}" for name, value in shown.items())

    __str__ = __repr__

    def __setattr__(self, name: str, value: Any) -> None:
        if self.is_locked and name not in self:
            # The library's message puts its hint behind all fields and their values.
            raise AttributeError(f"there is no field {name!r}: {nearest(name, FIELDS)}")
        super().__setattr__(name, value)


def find_field(name: str) -> Field:
    """Returns a field by its dotted name.

    Raises:
      ConfigError: no configuration has it; the nearest ones are named.
    """
    if name not in FIELDS:
        raise ConfigError(f"unknown field {name!r}: {nearest(name, FIELDS)}")
    return FIELDS[name]


def filled_by(*fillers: Filler) -> tuple[str, ...]:
    """Returns the names of the fields that one of these fills in where they are left open."""
    return tuple(name for name, field in FIELDS.items() if field.filled_by in fillers)


def default_config(
    bits: str | None = None, *, weight_bits: int | None = None, activation_bits: int | None = None
) -> Config:
    """Returns the complete configuration, locked: fields can be set but not added.

    Args:
      bits: both bit-widths as one word, `w4a4`; empty or None for the next two.
      weight_bits: of every convolution and dense layer, 1 to 8; by default the field's.
      activation_bits: of every quantized activation, 1 to 8; by default the field's.

    Raises:
      ConfigError: a bit-width is malformed or out of range.
    """
    if bits:
        weight_bits, activation_bits = parse_bits(bits)
    config = Config()
    for name, field in FIELDS.items():
        section, _, last = name.rpartition(".")
        if section and section not in config:
            config[section] = Config()
        part = config[section] if section else config
        part[last] = _open(field) if field.default is None else field.default
    if weight_bits is not None:
        config.quant.weight_bits = weight_bits
    if activation_bits is not None:
        config.quant.activation_bits = activation_bits
    return config.lock()


def leave_to_teacher(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Empties the fields that follow from the teacher's network, where it is known.

    Args:
      config: of `default_config`.

    Returns:
      The same configuration, in which each of those fields can still be set.
    """
    with config.unlocked():
        for name in filled_by(Filler.NETWORK):
            config.update_from_flattened_dict({name: _open(FIELDS[name])})
    return config


def _open(field: Field) -> config_dict.FieldReference:
    """Returns None that knows the type of what takes its place."""
    return config_dict.placeholder(field.kind.type)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of nested sections by their dotted names, each after a prefix."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
