"""What agreement and health usually mean for accuracy, from runs in which all three were measured.

Without evaluation images nobody knows a student's accuracy, and its agreement with the teacher on
generated images looks low: these are harder than photographs. So it is said what the agreement was
in runs whose accuracy is known.
"""

import dataclasses

FEWEST = 5  # runs, below which no range is told

_DIGITS, _CIFAR10 = "ResNet-20 on digits", "ResNet-20 on CIFAR-10"


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
    """The numbers of a run's last student.

    Attributes:
      teacher: network and images of the teacher.
      bits: bit-widths such as `w4a4`; the digits' first and last layer have 8 bits.
      agreement: share of held-out generated images that teacher and student give the same class.
      health: the score of `health.py`; None where it was not kept.
      kept: top-1 on real images, as a share of the teacher's.
    """

    teacher: str
    bits: str
    agreement: float
    health: float | None
    kept: float


# Commands and commits: configs/RESULTS.md, "What agreement and health usually mean".
MEASURED = (
    MeasuredRun(_DIGITS, "w4a4", 0.868, 0.480, 1.0),
    MeasuredRun(_DIGITS, "w4a4", 0.860, 0.477, 0.997),
    MeasuredRun(_CIFAR10, "w4a4", 0.811, None, 0.992),
    MeasuredRun(_CIFAR10, "w4a4", 0.784, None, 0.989),
    MeasuredRun(_CIFAR10, "w4a4", 0.787, None, 0.990),
    MeasuredRun(_CIFAR10, "w4a4", 0.688, 0.317, 0.988),
    MeasuredRun(_DIGITS, "w3a3", 0.752, 0.433, 1.0),
    MeasuredRun(_DIGITS, "w3a3", 0.793, 0.387, 1.0),
    MeasuredRun(_DIGITS, "w3a3", 0.818, 0.413, 1.0),
    MeasuredRun(_DIGITS, "w4a2", 0.696, 0.386, 0.992),
    MeasuredRun(_DIGITS, "w4a2", 0.718, 0.376, 0.986),
    MeasuredRun(_DIGITS, "w4a2", 0.524, None, 0.972),
)


def usual_runs(bits: str) -> list[MeasuredRun]:
    """Returns the runs at a bit-width; none where fewer than `FEWEST` were measured."""
    runs = [run for run in MEASURED if run.bits == bits]
    return runs if len(runs) >= FEWEST else []


def what_is_usual(bits: str, agreement: float) -> str:
    """Returns a sentence on what agreement is usual at a bit-width, and where a run's lies.

    Args:
      bits: bit-widths such as `w4a4`.
      agreement: of the run, a share of held-out generated images.
    """
    runs = usual_runs(bits)
    if not runs:
        count = sum(run.bits == bits for run in MEASURED)
        return (
            f"What agreement is usual at {bits} is not known: {count or 'no'} "
            f"{'run was' if count == 1 else 'runs were'} measured, and {FEWEST} are needed."
        )
    teachers = sorted({run.teacher for run in runs})
    shares = [run.agreement for run in runs]
    low, high = min(shares), max(shares)
    text = (
        f"Agreement of {_span(shares)} % on generated images"
        f"{_healths(runs)} is usual at {bits} ({len(runs)} runs of {len(teachers)} "
        f"{'teacher' if len(teachers) == 1 else 'teachers'}, {' and '.join(teachers)}, which kept "
        f"{_span([run.kept for run in runs])} % of the teacher's top-1)"
    )
    if all(run.kept > run.agreement for run in runs):
        text += ": generated images are harder than real ones"
    if low <= agreement <= high:
        return f"{text}."
    side = "below" if agreement < low else "above"
    return f"{text}. This run's {100 * agreement:.0f} % is {side} that."


def _span(shares: list[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


def _healths(runs: list[MeasuredRun]) -> str:
    known = [run.health for run in runs if run.health is not None]
    if len(known) < FEWEST:
        return ""
    return f" (health {min(known):.2f} to {max(known):.2f})"
