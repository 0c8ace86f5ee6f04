"""The measurements of `benchmark` as a table for people."""

from typing import Any

_BUSY = 0.5  # load average of the last minute above which times are doubtful


def benchmark_table(result: dict[str, Any]) -> str:
    """Formats a result of `benchmark` as a plain table."""
    phases, used = result["phases"], result["flops_per_s"]
    ceiling = result["matmul_flops_per_s"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    compiled = [f"{name} {phase['compile_s']:.1f}" for name, phase in phases.items()]
    lines = [
        f"{'device':<30}{result['device']}, {result['cores']} cores, {versions}",
        f"{'network':<30}{result['network']}, {result['bits']}, batch {result['batch_size']}",
        f"{'compilation':<30}{result['compile_s']:.1f} s: {', '.join(compiled)}",
        f"{'memory':<30}{result['peak_bytes'] / 1e6:.0f} MB",
        f"{'FLOP a step of play':<30}{result['flops_per_step'] / 1e9:.2f}e9, as XLA counts",
        f"{'FLOP/s':<30}{used / 1e9:.0f}e9, {used / ceiling:.0%} of a matrix product's",
        "",
        f"{'ms a step':<30}{'median':>9}{'10 %':>9}{'90 %':>9}{'images/s':>10}",
    ]

    def row(name, times, more=""):
        values = (times[key] * 1e3 for key in ("median_s", "p10_s", "p90_s"))
        return f"{name:<30}" + "".join(f"{value:>9.2f}" for value in values) + more

    lines += [row(name, phase, f"{phase['images_per_s']:>10.0f}") for name, phase in phases.items()]
    if "torch" in result:
        torch = result["torch"]
        lines += [
            row(
                "PyTorch, authors' procedure", torch["phases"]["play"], f"  x {result['ratio']:.2f}"
            ),
            row(
                "PyTorch, our algorithm",
                torch["lean"]["phases"]["play"],
                f"  x {result['ratio_same_algorithm']:.2f}",
            ),
        ]
    if result["parts"]:
        lines += ["", f"{'parts, each alone, ms':<30}"]
    lines += [f"{name:<30}{seconds * 1e3:>9.2f}" for name, seconds in result["parts"].items()]
    if result["load"] > _BUSY:
        lines += ["", f"The machine was busy (load {result['load']:.1f}): times are too long."]
    return "\n".join(lines)
