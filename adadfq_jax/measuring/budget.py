"""How long a part will take, by what was measured on the machine so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from adadfq_jax.measuring.parts import Kind, Part

# Of a step of AdaDFQ, seconds, where nothing is measured yet: above the slowest that is expected.
_STEP = {"gpu": 0.004, "tpu": 0.004, "cpu": 0.15}

# How much longer than it took before it was cut a part will take at least.
_AGAIN = 1.5

# The part whose steps are those of a run.
_OF_RUNS = "speed_16"


def seconds_needed(
    part: Part, parts: Sequence[Part], entries: Mapping[str, Mapping[str, Any]], platform: str
) -> float:
    """Estimates how long a part will take.

    Args:
      part: the part.
      parts: all parts.
      entries: what was measured so far by the name of the part, as `session.Session` keeps it.
      platform: of the devices, such as "gpu".

    Returns:
      Seconds; for a run, of the steps that are left.
    """
    own = entries.get(part.name, {})
    fixed = part.seconds * _pace(parts, entries)
    if not part.steps:
        return max(fixed, _AGAIN * own.get("seconds", 0.0) if own.get("status") == "cut" else 0.0)
    left = part.steps - own.get("steps", 0)
    return fixed + left * _step_seconds(part, parts, entries, platform)


def _pace(parts: Sequence[Part], entries: Mapping[str, Mapping[str, Any]]) -> float:
    """Returns how many times as long as guessed the parts took that are no runs; 1 before any."""
    done = [
        part
        for part in parts
        if not part.steps and entries.get(part.name, {}).get("status") == "done"
    ]
    if not done:
        return 1.0
    return sum(entries[part.name]["seconds"] for part in done) / sum(part.seconds for part in done)


def _step_seconds(
    part: Part, parts: Sequence[Part], entries: Mapping[str, Mapping[str, Any]], platform: str
) -> float:
    # Best the run's own steps, then those of another run, then those that were timed alone.
    runs = sorted(
        (other for other in parts if other.kind is Kind.RUN),
        key=lambda other: (other is not part, other.cost != part.cost),
    )
    for run in runs:
        if rate := entries.get(run.name, {}).get("steps_per_second"):
            return part.cost / run.cost / rate
    timed = entries.get(_OF_RUNS, {}).get("result")
    step = timed["phases"]["play"]["median_s"] if timed else _STEP.get(platform, _STEP["gpu"])
    return part.cost * step
