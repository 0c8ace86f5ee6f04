"""Is an exported file the student? Both answer for the same images before the file is kept."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import numpy as np

from adadfq_jax.evaluation.accuracy import logits_of
from adadfq_jax.exporting import integer_check
from adadfq_jax.exporting.quantized import QuantizedNetwork
from adadfq_jax.models.network import Network, flatten, normalize, unflatten

_BATCH = 64
# An image whose logits differ by more than this share of their range counts as different. A few do
# in any two programs: an activation in the middle between two codes falls on one side or the other
# by the rounding of float32, and at few bits a code more or less is much.
_LARGE_DIFFERENCE = 0.01
_MOST_DIFFERENT = 0.05  # of the images
# An image of 224 pixels has millions of activations, so that most images differ so. Then the file
# may not differ from the student by more than the student does from itself, when every BatchNorm
# is changed by as much as a sum of some thousand terms is rounded, and as the file rounds biases.
_ROUNDING = 1e-6
_MOST_OF_ROUNDING = 3.0
_WHY_SO_LARGE = (
    "PyTorch's layers take float32, so that each weight has 32 bits, whatever its code has; the "
    "other formats hold the codes"
)
# Of a layer's range, in integers: only channels whose weights are almost constant come near it.
_LARGE_INTEGER_DIFFERENCE = 0.01
# Images that the layers are computed for in integers, which is slow.
_IN_INTEGERS = 2


@dataclasses.dataclass(frozen=True)
class Difference:
    """How two networks' answers to some images differ.

    Attributes:
      agreement: fraction of the images that both give the same class.
      largest: the largest difference of a logit, in units of the logits' range.
      usual: the median over the images of each one's largest.
      different: fraction of the images whose largest exceeds 1 %.
    """

    agreement: float
    largest: float
    usual: float
    different: float

    @classmethod
    def of(cls, found: np.ndarray, expected: np.ndarray) -> "Difference":
        """Compares logits, (N, classes)."""
        scale = max(float(np.ptp(expected)), 1e-30)
        differences = np.abs(found - expected).max(1) / scale
        return cls(
            agreement=float(np.mean(found.argmax(1) == expected.argmax(1))),
            largest=float(differences.max()),
            usual=float(np.median(differences)),
            different=float(np.mean(~(differences <= _LARGE_DIFFERENCE))),  # not-a-number too
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """How an exported file compares with its student.

    Attributes:
      format: of the file.
      images: how many were compared.
      agreement: fraction of them that both give the same class.
      difference: the largest difference of a logit, in units of the logits' range.
      usual_difference: the median over the images of each one's largest.
      different: fraction of the images whose largest exceeds 1 %.
      failure: why the file is not the student, for people; empty where it is.
      teacher_bytes: of the teacher's float32 variables.
      code_bytes: of the weights, k bits each, or 32.
      file_bytes: of the file.
      integer_difference: the largest difference of a layer in integer arithmetic from its
        simulation, in units of that layer's range; None where no layer's input is quantized.
      integer_layers: how many layers were computed so.
      float_layers: the others, whose input is not quantized.
      accumulator_bits: bits that the largest accumulated integer needs.
      others: what other engines make of the file, (engine, difference) of each.
      notes: what else is to be said of the file, (name, text) of each.
    """

    format: str
    images: int
    agreement: float
    difference: float
    usual_difference: float
    different: float
    failure: str
    teacher_bytes: int
    code_bytes: int
    file_bytes: int
    integer_difference: float | None
    integer_layers: int
    float_layers: tuple[str, ...]
    accumulator_bits: int
    others: tuple[tuple[str, "Difference"], ...] = ()
    notes: tuple[tuple[str, str], ...] = ()

    def to_text(self) -> str:
        """Returns a plain table."""
        ratio = self.teacher_bytes / self.file_bytes
        smaller = f", {ratio:.1f} times smaller than the teacher" if ratio > 1 else ""
        rows = [
            ("format", self.format),
            ("same class", f"{self.agreement:.2%} of {self.images} images"),
            (
                "logits differ by",
                f"{self.usual_difference:.1e} of their range (median), {self.difference:.1e} at "
                f"most; by more than {_LARGE_DIFFERENCE:.0%} in {self.different:.1%} of the images",
            ),
            *(
                (f"in {engine}", f"{found.agreement:.2%}, by {found.usual:.1e} (median)")
                for engine, found in self.others
            ),
            ("teacher", f"{self.teacher_bytes:,} bytes"),
            ("codes", f"{self.code_bytes:,} bytes"),
            (
                "file's size",
                f"{self.file_bytes:,} bytes{smaller}",
            ),
        ]
        if self.format == "pytorch":
            rows.append(("why so large", _WHY_SO_LARGE))
        if self.integer_difference is not None:
            rows.append(
                (
                    "checked as integers",
                    f"{self.integer_layers} layers, codes times codes with sums of "
                    f"{self.accumulator_bits} bits, within {self.integer_difference:.1e} of a "
                    "layer's range (float32 sums round, integers do not)",
                )
            )
            rows.append(("float input", ", ".join(self.float_layers)))
        rows += self.notes
        return "\n".join(f"{name:<22}{value}" for name, value in rows)


def compare(
    student: Network,
    network: QuantizedNetwork,
    models: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    images: np.ndarray,
    file_bytes: int,
    format: str,
    rounding: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> Report:
    """Compares a student with what was read back from its file.

    Args:
      student: it.
      network: its integers.
      models: what the file answers, by what runs it; the first one is reported in full.
      images: (N, H, W, 3), uint8 or normalised.
      file_bytes: size of the file.
      format: its format.
      rounding: by variable, by how much at most the file has it rounded, for each channel.
    """
    expected = logits_of(student, images, _BATCH)
    differences = {
        name: Difference.of(logits_of(model, images, _BATCH), expected)
        for name, model in models.items()
    }
    failure = ""
    if any(found.different > _MOST_DIFFERENT for found in differences.values()):
        of_rounding = Difference.of(
            logits_of(_rounded(student, rounding), images, _BATCH), expected
        )
        for name, found in differences.items():
            if found.different > _MOST_DIFFERENT and not _explains(of_rounding, found):
                failure = (
                    f"in {name}, the logits of {found.different:.1%} of the images differ from "
                    f"the student's by more than {_LARGE_DIFFERENCE:.0%} of their range (by "
                    f"rounding alone, {of_rounding.different:.1%})."
                )
    (_, first), *rest = differences.items()
    layers, others = [], []
    if network.activations:
        few = normalize(images[:_IN_INTEGERS], network.mean, network.std)
        layers, others = integer_check.check(network, np.asarray(few, np.float32))
    wrong = [layer.layer for layer in layers if not layer.difference <= _LARGE_INTEGER_DIFFERENCE]
    if wrong and not failure:
        failure = (
            f"in integers, {', '.join(wrong)} would differ from the student by more than "
            f"{_LARGE_INTEGER_DIFFERENCE:.0%} of the layer's range."
        )
    variables = student.variables
    floats = jax.tree.leaves((variables["params"], variables["batch_stats"]))
    return Report(
        format=format,
        images=len(images),
        agreement=first.agreement,
        difference=first.largest,
        usual_difference=first.usual,
        different=first.different,
        failure=failure,
        teacher_bytes=sum(4 * leaf.size for leaf in floats),
        code_bytes=sum(
            -(-part.codes.size * (part.bits or 32) // 8) for part in network.weights.values()
        ),
        file_bytes=file_bytes,
        integer_difference=max((layer.difference for layer in layers), default=None),
        integer_layers=len(layers),
        float_layers=tuple(others),
        accumulator_bits=max((layer.accumulator_bits for layer in layers), default=0),
        others=tuple(rest),
    )


def _explains(of_rounding: Difference, found: Difference) -> bool:
    """Tells whether the rounding of sums makes about as much of a difference."""
    return (
        found.different <= _MOST_OF_ROUNDING * of_rounding.different
        and found.usual <= _MOST_OF_ROUNDING * of_rounding.usual
    )


def _rounded(student: Network, rounding: Mapping[str, np.ndarray]) -> Network:
    """Returns the student with each channel of its BatchNorms, and each bias, moved a little."""
    random = np.random.default_rng(0)
    moved = flatten(student.variables["params"])
    for name, leaf in moved.items():
        if leaf.ndim != 1:  # a kernel, whose codes would change
            continue
        signs = np.where(random.random(leaf.shape) < 0.5, -1, 1)
        more = random.uniform(-1, 1, leaf.shape) * rounding.get(name, 0)
        moved[name] = np.asarray(leaf * (1 + _ROUNDING * signs) + more, np.float32)
    params = unflatten(moved)
    return dataclasses.replace(student, variables=student.variables | {"params": params})
