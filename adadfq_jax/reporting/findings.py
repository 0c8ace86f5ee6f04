"""The findings of a run's report: sentences that fixed rules derive from the run's numbers.

Measured accuracy has the last word. What generated images suggest is a problem only if accuracy was
lost, or if nobody knows it and the agreement is not known to be usual; otherwise it is a note. A
rule that gives advice also checks the numbers that could contradict the advice.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

from adadfq_jax.evaluation.drift import Drift, find_drift
from adadfq_jax.evaluation.statistics import StatisticsCheck
from adadfq_jax.evaluation.usual import usual_runs, what_is_usual
from adadfq_jax.reporting.layer_errors import QuantizedActivation, QuantizedWeight

PROBLEM, NOTE, GOOD = "problem", "note", "good"

# Ranges that still change by more than this were frozen too early.
_MOST_RANGE_CHANGE = 0.05
# Share of images outside the margin: in every batch one image has H' = 0, and a few are near 1.
_MOST_OUTSIDE = 0.25
# For methods without a margin: above this mean H', the networks agree on nearly every image.
_HIGHEST_H_PRIME = 0.9
_LEAST_AGREEMENT, _HIGH_AGREEMENT = 0.5, 0.9
# Agreement of a few runs does not reach as far as that of many would.
_USUAL_SPREAD = 0.1
# Top-1 of single evaluations fluctuates by this much.
_USUAL_FALL = 0.01
_MOST_LOST = 0.05
_HARDLY_LOST = 0.01
# Health of single evaluations fluctuates by this factor.
_MUCH_HEALTHIER = 1.1
# Shares of values: images of the trained generator exceed those of calibration a little.
_MOST_CLIPPED, _FAR_TOO_MUCH_CLIPPED = 0.01, 0.1
_MOST_DEAD, _FAR_TOO_MUCH_DEAD = 0.1, 0.5
# At 6 dB the error has a quarter of the signal's energy.
_LEAST_DECIBELS = 6.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """One sentence of a report.

    Attributes:
      level: PROBLEM, NOTE or GOOD.
      text: the sentence.
    """

    level: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The numbers that the rules use.

    Attributes:
      bits: bit-widths such as `w4a4`.
      steps, total_steps: steps taken, and steps of the whole schedule.
      diverged: the message of a sweep's game that diverged; None where it did not.
      not_finite: for each metric that was infinite or not a number, the first such step.
      calibration_epochs, warmup_epochs, epochs: the epochs at which calibration, warm-up and run
        end; the student learns after the warm-up.
      student_milestones: epochs at which the student's learning rate falls; empty for a schedule
        without milestones.
      student_rate: name of the field that holds the student's learning rate.
      clips_on_purpose: whether ranges may exclude values by design.
      range_change: relative change of the ranges in the last epoch of calibration; None if unknown.
      lambda_l, lambda_u: boundaries of the margin of H'; None without a margin.
      h_prime: H' of held-out images.
      agreement: share of held-out images that both networks give the same class.
      calibrated_agreement: agreement before the first step of play; None if unknown.
      played: (step, agreement) of each evaluation since then, in order.
      teacher_top1, calibrated_top1, top1, best_top1: fractions; None where not measured.
      best_step: step of best_top1.
      health: health of the newest student, 0 to 1, see `evaluation/health.py`.
      healthiest, healthiest_step, healthiest_top1: the highest health of all evaluations, its step
        and its top-1; None if unknown.
      statistics: distance of procedural images from the teacher's statistics, in nats.
      weights, activations: errors of the quantizers, by layer.
    """

    bits: str
    steps: int
    total_steps: int
    diverged: str | None
    not_finite: Mapping[str, int]
    calibration_epochs: int
    warmup_epochs: int
    epochs: int
    student_milestones: Sequence[float]
    student_rate: str
    clips_on_purpose: bool
    range_change: float | None
    lambda_l: float | None
    lambda_u: float | None
    h_prime: Sequence[float]
    agreement: float
    calibrated_agreement: float | None
    played: Sequence[tuple[int, float]]
    teacher_top1: float | None
    calibrated_top1: float | None
    top1: float | None
    best_top1: float | None
    best_step: int | None
    health: float
    healthiest: float | None
    healthiest_step: int | None
    healthiest_top1: float | None
    statistics: float
    weights: Sequence[QuantizedWeight]
    activations: Sequence[QuantizedActivation]

    @property
    def kept(self) -> bool:
        """Whether accuracy was measured and is within 5 points of the teacher's."""
        known = self.top1 is not None and self.teacher_top1 is not None
        return known and self.teacher_top1 - self.top1 <= _MOST_LOST

    @property
    def fine(self) -> bool:
        """Whether accuracy was kept, or, where nobody knows, agreement is as usual."""
        if self.top1 is None:
            return bool(usual_runs(self.bits)) and not self.unusual
        return self.kept

    @property
    def unusual(self) -> bool:
        """Whether nearly no run at this bit-width agrees as little, where enough were measured."""
        known = [run.agreement for run in usual_runs(self.bits)]
        return self.agreement < (min(known) - _USUAL_SPREAD if known else _LEAST_AGREEMENT)

    @property
    def drift(self) -> Drift | None:
        """The drift of the newest student; None where it does not drift."""
        return find_drift(self.played)

    @property
    def settled(self) -> bool:
        """Whether the ranges are known to have hardly moved in the last epoch of calibration."""
        return self.range_change is not None and self.range_change <= _MOST_RANGE_CHANGE


def find(facts: Facts) -> list[Finding]:
    """Applies every rule, and returns problems first, then notes, then good news."""
    found = [
        *_whether_it_ended(facts),
        *_teacher(facts),
        *_ranges(facts),
        *_margin(facts),
        *_what_play_brought(facts),
        *_layers(facts),
    ]
    if not any(finding.level == PROBLEM for finding in found):
        found.append(Finding(GOOD, "Nothing else was found wrong by the rules of this report."))
    return sorted(found, key=lambda finding: (PROBLEM, NOTE, GOOD).index(finding.level))


def verdict(facts: Facts, found: Sequence[Finding]) -> Finding:
    """Returns the one sentence that a reader in a hurry needs, with its level.

    Args:
      facts: the run's numbers.
      found: of `find`.
    """
    if facts.diverged:
        return Finding(PROBLEM, "The run diverged: its student is of no use.")
    if facts.steps < facts.total_steps:
        return Finding(
            PROBLEM, f"The run is not finished: {facts.steps} of {facts.total_steps} steps."
        )
    if facts.top1 is None:
        problems = sum(finding.level == PROBLEM for finding in found)
        if problems:
            what = "a problem was" if problems == 1 else f"{problems} problems were"
            return Finding(PROBLEM, f"Accuracy is not known, and {what} found.")
        how = "less than usual" if facts.unusual else "as usual" if usual_runs(facts.bits) else ""
        return Finding(
            NOTE,
            "Accuracy is not known, and nothing speaks against the student: it agrees with the "
            f"teacher on {facts.agreement:.1%} of the generated images"
            + (f", {how} at {facts.bits}." if how else "."),
        )
    if facts.teacher_top1 is None:
        return Finding(NOTE, f"The student is right on {facts.top1:.2%} of the evaluation images.")
    text = f"The student is right on {facts.top1:.2%} of the images, the teacher on "
    text += f"{facts.teacher_top1:.2%}"
    harmed = facts.best_top1 is not None and facts.best_top1 - facts.top1 > _USUAL_FALL
    if harmed:
        text += f"; at step {facts.best_step} it was better, with {facts.best_top1:.2%}"
    lost = facts.teacher_top1 - facts.top1
    if lost < _HARDLY_LOST:
        return Finding(NOTE if harmed else GOOD, f"{text}: accuracy is kept.")
    level = NOTE if facts.kept else PROBLEM
    return Finding(level, f"{text}: {100 * lost:.1f} points are lost.")


def _whether_it_ended(facts: Facts) -> Iterator[Finding]:
    if facts.diverged is not None:
        yield Finding(PROBLEM, facts.diverged[:1].upper() + facts.diverged[1:])
    elif facts.steps < facts.total_steps:
        yield Finding(
            PROBLEM,
            f"The run is not finished: the newest checkpoint is of step {facts.steps} of "
            f"{facts.total_steps}; the command that started it goes on.",
        )
    if facts.not_finite:
        first = min(facts.not_finite.values())
        yield Finding(
            PROBLEM,
            f"{', '.join(sorted(facts.not_finite))} not finite, first at step {first}: lower "
            f"generator.learning_rate or {facts.student_rate}, or calibrate longer.",
        )


def _teacher(facts: Facts) -> Iterator[Finding]:
    check = StatisticsCheck(facts.statistics)
    if check.unusual:
        # Only a note where the teacher's accuracy was measured, since that says more.
        known = facts.teacher_top1 is not None
        unless = f", unless {facts.teacher_top1:.2%} is its known accuracy" if known else ""
        yield Finding(
            NOTE if known else PROBLEM,
            f"The teacher may have been read as another network than it is{unless}: "
            f"{check.sentence}.",
        )


def _ranges(facts: Facts) -> Iterator[Finding]:
    change, epochs = facts.range_change, facts.calibration_epochs
    if change is not None and change > _MOST_RANGE_CHANGE:
        yield Finding(
            PROBLEM,
            f"Ranges still moved by {change:.0%} in the last calibration epoch: calibrate longer "
            f"(calibration_epochs is {epochs}).",
        )
    elif change is not None:
        yield Finding(
            GOOD, f"Ranges had settled: they moved by {change:.2%} in the last calibration epoch."
        )
    elif epochs < 2:
        yield Finding(
            NOTE, "One epoch of calibration does not tell whether the ranges had settled."
        )
    clipped = [layer for layer in facts.activations if layer.clipped > _MOST_CLIPPED]
    if clipped and not facts.clips_on_purpose:
        worst = max(clipped, key=lambda layer: layer.clipped)
        if facts.settled:
            serious = worst.clipped > _FAR_TOO_MUCH_CLIPPED and not facts.fine
            why = "the generator's images now reach further than those of calibration"
        else:
            serious, why = not facts.fine, "calibrate longer"
        yield Finding(
            PROBLEM if serious else NOTE,
            f"{len(clipped)} of {len(facts.activations)} activations clip more than "
            f"{_MOST_CLIPPED:.0%} of their values, {worst.name} most ({worst.clipped:.1%}): {why}.",
        )


def _margin(facts: Facts) -> Iterator[Finding]:
    values = [value for value in facts.h_prime if math.isfinite(value)]
    if len(values) < len(facts.h_prime):
        yield Finding(
            PROBLEM,
            f"H' of {len(facts.h_prime) - len(values)} of {len(facts.h_prime)} held-out images is "
            "not finite.",
        )
    if not values:
        return
    mean = sum(values) / len(values)
    lower, upper = facts.lambda_l, facts.lambda_u
    # No margin, one that holds every H', or equal boundaries, which H' is pulled to.
    if lower is None or upper is None or (lower, upper) == (0, 1) or lower == upper:
        if mean > _HIGHEST_H_PRIME:
            yield Finding(
                NOTE,
                f"Mean H' of held-out images is {mean:.2f}: teacher and student agree, and little "
                "is left to learn from such images.",
            )
        return
    below = sum(value < lower for value in values) / len(values)
    above = sum(value > upper for value in values) / len(values)
    if below > _MOST_OUTSIDE:
        yield Finding(
            NOTE if facts.fine else PROBLEM,
            f"H' is below lambda_l = {lower:g} for {below:.0%} of the held-out images, too hard "
            "for the student: use more bits, train longer, or raise lambda_l.",
        )
    if above > _MOST_OUTSIDE:
        # No problem if the student has learned all there is to learn.
        yield Finding(
            NOTE if facts.fine or facts.agreement >= _HIGH_AGREEMENT else PROBLEM,
            f"H' is above lambda_u = {upper:g} for {above:.0%} of the held-out images: teacher and "
            "student agree on them, and little is left to learn from them.",
        )
    if max(below, above) <= _MOST_OUTSIDE:
        yield Finding(
            GOOD,
            f"H' is inside the margin {lower:g} to {upper:g} for {1 - below - above:.0%} of the "
            f"held-out images; its mean is {mean:.2f}.",
        )


def _what_play_brought(facts: Facts) -> Iterator[Finding]:
    early = sum(milestone <= facts.warmup_epochs for milestone in facts.student_milestones)
    if early and facts.epochs > facts.warmup_epochs:
        yield Finding(
            PROBLEM,
            f"The student's learning rate had fallen at {early} of its "
            f"{len(facts.student_milestones)} milestones before the student first learned, after "
            f"epoch {facts.warmup_epochs}: set student.milestones later.",
        )
    if facts.unusual:
        yield Finding(
            NOTE if facts.kept else PROBLEM,
            f"Teacher and student agree on only {facts.agreement:.1%} of the held-out images: "
            + (
                "these are harder than the evaluation images, on which the student has kept the "
                "teacher's accuracy."
                if facts.kept
                else "train longer, or with more bits."
            ),
        )
    before = facts.calibrated_agreement
    known = facts.top1 is not None and facts.calibrated_top1 is not None
    gained = known and facts.top1 > facts.calibrated_top1
    if before is not None and facts.agreement > before:
        yield Finding(
            GOOD,
            f"Play raised the agreement on generated images: {before:.1%} calibrated, "
            f"{facts.agreement:.1%} now.",
        )
    # Not said if accuracy rose: the generator's images become harder during play, so accuracy says
    # more.
    elif before is not None and not gained:
        yield Finding(
            NOTE,
            f"Play did not raise the agreement on generated images: {before:.1%} calibrated, "
            f"{facts.agreement:.1%} now.",
        )
    yield from _drift(facts)
    healthier = facts.healthiest is not None and (facts.healthiest > _MUCH_HEALTHIER * facts.health)
    worse = (
        facts.top1 is not None
        and facts.healthiest_top1 is not None
        and facts.healthiest_top1 < facts.top1 - _USUAL_FALL
    )
    # Of a student that drifts it is said already.
    if healthier and not worse and facts.drift is None:
        yield Finding(
            NOTE,
            f"The student was healthier at step {facts.healthiest_step} ({facts.healthiest:.3f}, "
            f"now {facts.health:.3f}): --checkpoint=best exports that one.",
        )
    if facts.top1 is None:
        yield Finding(
            NOTE,
            "Accuracy is not measured, for the run had no evaluation images. "
            + what_is_usual(facts.bits, facts.agreement),
        )
        return
    if facts.teacher_top1 is not None and facts.teacher_top1 - facts.top1 > _MOST_LOST:
        lost = 100 * (facts.teacher_top1 - facts.top1)
        harmed = facts.best_top1 is not None and facts.best_top1 - facts.top1 > _USUAL_FALL
        longer = "" if harmed else "longer training or "
        yield Finding(
            NOTE,
            f"Top-1 is {lost:.1f} points below the teacher's {facts.teacher_top1:.2%}: {longer}"
            "more bits may win some back.",
        )
    if facts.calibrated_top1 is not None:
        gain = facts.top1 - facts.calibrated_top1
        if gain > 0:
            level, verdict = GOOD, "by training"
        elif gain >= -_USUAL_FALL:
            level, verdict = NOTE, "no gain that these images can tell"
        else:
            level, verdict = PROBLEM, "so training made the student worse"
        yield Finding(
            level,
            f"Top-1 went from {facts.calibrated_top1:.2%} (calibrated only) to {facts.top1:.2%}, "
            f"{verdict}.",
        )
    if facts.best_top1 is not None and facts.best_top1 - facts.top1 > _USUAL_FALL:
        yield Finding(
            NOTE,
            f"Top-1 fell from {facts.best_top1:.2%} at step {facts.best_step} to "
            f"{facts.top1:.2%} at the end: the last steps made the student worse.",
        )


def _drift(facts: Facts) -> Iterator[Finding]:
    """Tells of a student that drifts, and of one that drifted and came back."""
    if facts.drift is not None:
        sentence = facts.drift.sentence(facts.healthiest_step)
        harmed = facts.top1 is None or facts.best_top1 - facts.top1 > _USUAL_FALL
        kept = "" if harmed else " Top-1 has not fallen with it, however."
        yield Finding(PROBLEM if harmed else NOTE, sentence[:1].upper() + sentence[1:] + kept)
        return
    before = (find_drift(facts.played[:count]) for count in range(len(facts.played)))
    if past := next(filter(None, before), None):
        yield Finding(
            NOTE,
            f"The student was drifting at step {past.step} (agreement {past.agreement:.1%}, after "
            f"{past.best_agreement:.1%} at step {past.best_step}), and came back.",
        )


def _layers(facts: Facts) -> Iterator[Finding]:
    silent = [layer.name for layer in facts.activations if layer.largest <= 0]
    if silent:
        yield Finding(PROBLEM, f"Always 0 on held-out images: {', '.join(silent)}.")
    dead = [layer for layer in facts.activations if layer.dead > _MOST_DEAD * 2**layer.bits]
    if dead:
        worst = max(dead, key=lambda layer: layer.dead / 2**layer.bits)
        many = worst.dead > _FAR_TOO_MUCH_DEAD * 2**worst.bits
        yield Finding(
            PROBLEM if many and not facts.fine else NOTE,
            f"{len(dead)} of {len(facts.activations)} activations leave more than "
            f"{_MOST_DEAD:.0%} of their codes unused, {worst.name} most ({worst.dead} of "
            f"{2**worst.bits}): the range is wider than the values in it.",
        )
    for kind, layers in (("weights", facts.weights), ("activations", facts.activations)):
        noisy = [layer for layer in layers if layer.sqnr < _LEAST_DECIBELS]
        if noisy:
            worst = min(noisy, key=lambda layer: layer.sqnr)
            yield Finding(
                NOTE,
                f"The {kind} of {len(noisy)} of {len(layers)} layers have a quantization error "
                f"above a quarter of their energy (below {_LEAST_DECIBELS:g} dB), "
                f"{worst.name} most ({worst.sqnr:.1f} dB, {worst.bits} bit): "
                "quant.overrides gives single layers more bits.",
            )
