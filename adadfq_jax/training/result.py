"""A run's result for people."""

from typing import Any

from adadfq_jax.evaluation.accuracy import percent


def result_table(result: dict[str, Any]) -> str:
    """Returns a run's result as a plain table."""

    def measured(name: str) -> str:
        count = result.get(f"{name}_images")
        fewer = count is not None and count != result["evaluation_images"]
        return percent(result[f"{name}_top1"]) + (f", on {count:,} images" if fewer else "")

    bits = f"w{result['weight_bits']}a{result['activation_bits']}"
    if result["overrides"]:
        bits += f" ({', '.join(result['overrides'])})"
    best, healthiest = measured("best"), measured("healthiest")
    if result["best_top1"] is not None:
        best += f" (step {result['best_step']}, chosen on these images)"
    healthiest += f" (step {result['healthiest_step']}, chosen without data: --checkpoint=best)"
    rows = [
        ("network", f"{result['architecture']}, {bits}, seed {result['seed']}"),
        ("teacher top-1", percent(result["teacher_top1"])),
        ("calibrated only", measured("calibrated")),
        ("student top-1, last", percent(result["top1"])),
        ("student top-1, best", best),
        ("healthiest student", healthiest),
        ("agreement, generated", percent(result["agreement"])),
        ("steps", f"{result['steps']} at {result['steps_per_second']:.1f} per second"),
    ]
    return "\n".join(f"{name:<22}{value}" for name, value in rows)
