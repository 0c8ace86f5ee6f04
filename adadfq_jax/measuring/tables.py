"""What was measured of a machine as Markdown, in the form of this project's own tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from adadfq_jax.evaluation.accuracy import percent
from adadfq_jax.measuring.parts import Kind

_NOT_MEASURED = "not measured"
_FORECAST_OF = "speed_16"  # the part whose step `forecast` foretells
_PARTS = ("generator", "teacher", "student")


def tables(record: Mapping[str, Any]) -> str:
    """Returns the tables of a machine.

    Args:
      record: what `session.measure` returns.
    """
    machine = record["machine"]
    title = f"{machine['devices']} x {machine['kind']}"
    rehearsal = "\n\n**A rehearsal**: small networks, a few steps." if record["rehearsal"] else ""
    entries = record["parts"]
    sections = [
        f"## {title}\n\n{_about(machine, entries)}{rehearsal}",
        _speeds(_of(entries, Kind.SPEED)),
        _forecast(entries),
        _runs(_of(entries, Kind.RUN)),
        _tests(_of(entries, Kind.TESTS)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _of(entries: Mapping[str, Any], kind: Kind) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in entries.items() if entry["kind"] == kind.value}


def _about(machine: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = "" if machine["memory"] is None else f", {machine['memory'] / 1e9:.1f} GB each"
    driver = f", driver {machine['driver']}" if machine["driver"] else ""
    # Of what was begun: the source may have changed since.
    known = [entry["commit"] for entry in entries.values() if entry["status"] != "left out"]
    commit = " and ".join(dict.fromkeys(filter(None, known))) or "unknown"
    return (
        f"{machine['devices']} x {machine['kind']}{memory}{driver}; {machine['cores']} cores "
        f"({machine['processor']}); {versions}. Commit {commit}, {machine['date']}."
    )


def _speeds(entries: Mapping[str, Mapping[str, Any]]) -> str:
    if not entries:
        return ""
    heading = (
        "w4a4, a step of play",
        "ours",
        "authors' procedure in PyTorch",
        "our algorithm in PyTorch",
        "ratios",
        "GFLOP/s",
        "of a matrix product",
        "compiled in",
    )
    lines, parts = [], ""
    for entry in entries.values():
        result = entry.get("result")
        if result is None:
            lines.append([entry["title"], _why(entry), *[""] * (len(heading) - 2)])
            continue
        torch = result.get("torch")
        others = [_NOT_MEASURED, _NOT_MEASURED, ""]
        if torch:
            others = [
                _time(torch["phases"]["play"]["median_s"]),
                _time(torch["lean"]["phases"]["play"]["median_s"]),
                f"{result['ratio']:.2f}, {result['ratio_same_algorithm']:.2f}",
            ]
        speed = result["flops_per_s"]
        lines.append(
            [
                entry["title"],
                _time(result["phases"]["play"]["median_s"]),
                *others,
                f"{speed / 1e9:.0f}",
                f"{speed / result['matmul_flops_per_s']:.0%}",
                f"{result['compile_s']:.0f} s",
            ]
        )
        if result["parts"]:
            parts += f"\n\n{entry['title']}, each part alone:\n\n{_step_parts(result['parts'])}"
    loads = [entry["result"] for entry in entries.values() if "result" in entry]
    busy = max((result["load"] for result in loads if result["load"] > result["cores"]), default=0)
    note = f"\n\nThe machine was busy (load {busy:.1f}): times are too long." if busy else ""
    return f"### Speed\n\n{_table(heading, lines)}{note}\n\n{_commands(entries)}{parts}"


def _step_parts(parts: Mapping[str, float]) -> str:
    """Returns the parts of a step, forward and backward."""
    lines, left = [], dict(parts)
    for name in _PARTS:
        forward = left.pop(f"{name} forward", None)
        back = {key: left.pop(key) for key in list(left) if key.startswith(f"{name} backward")}
        ways = [
            _time(seconds) + key.removeprefix(f"{name} backward").replace(",", "")
            for key, seconds in back.items()
        ]
        lines.append([name, "" if forward is None else _time(forward), ", ".join(ways)])
    lines += [[name, _time(seconds), ""] for name, seconds in left.items()]
    return _table(("", "forward", "backward"), lines)


def _forecast(entries: Mapping[str, Mapping[str, Any]]) -> str:
    found = _of(entries, Kind.FORECAST)
    if not found:
        return ""
    ((_, entry),) = found.items()
    measured = entries.get(_FORECAST_OF, {}).get("result") or {}
    foretold = (entry.get("result") or {"slices": [{}]})["slices"][0]
    kernels = foretold.get("kernels")
    step = measured["phases"]["play"]["median_s"] if measured else None
    rows = (
        ("memory of a step", foretold.get("needed"), measured.get("peak_bytes"), _megabytes),
        ("FLOP of a step", foretold.get("flops"), measured.get("flops_per_step"), _gigaflop),
        ("time of a step", foretold.get("seconds"), step, _time),
        ("kernels of a step", kernels and sum(kernels.values()), None, "{:.0f}".format),
    )
    lines = [
        [what, *("" if value is None else form(value) for value in (first, second))]
        for what, first, second, form in rows
    ]
    network = entry["title"].rpartition("forecast, ")[2]
    table = _table((network, foretold.get("topology", "forecast"), "here"), lines)
    below = _commands(found) if "result" in entry else f"The forecast: {_why(entry)}."
    return f"### Forecast\n\n{table}\n\n{below}"


def _runs(entries: Mapping[str, Mapping[str, Any]]) -> str:
    if not entries:
        return ""
    heading = ("run", "steps", "calibrated only", "last", "best", "healthiest", "steps/s", "time")
    lines, courses = [], ""
    for entry in entries.values():
        result = entry.get("result")
        if result is not None:
            accuracies = [
                _top1(result[f"{name}top1"]) for name in ("calibrated_", "", "best_", "healthiest_")
            ]
            time = f"{result['seconds'] / 60:.1f} min"
        elif entry["status"] in ("diverged", "cut") and entry["steps"]:
            best = max((line["top1"] or 0.0 for line in entry["evaluations"]), default=0.0)
            accuracies = ["", f"**{entry['status']}**", _top1(best or None), ""]
            time = ""
        else:
            lines.append([entry["title"], "", "", _why(entry), *[""] * (len(heading) - 4)])
            continue
        rate = entry["steps_per_second"]
        lines.append(
            [
                entry["title"],
                f"{entry['steps']:,}",
                *accuracies,
                "" if rate is None else f"{rate:.1f}",
                time,
            ]
        )
        if entry["status"] == "diverged":
            courses += f"\n\n{entry['title']}:\n\n{_course(entry['evaluations'])}"
    return f"### Runs\n\n{_table(heading, lines)}\n\n{_commands(entries)}{courses}"


def _course(evaluations: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            f"{line['step']:,}",
            _top1(line["top1"]),
            percent(line["agreement"]),
            f"{line['held_out_l_bns']:.2f}",
        ]
        for line in evaluations
    ]
    return _table(("step", "top-1", "agreement", "L_BNS"), lines)


def _tests(entries: Mapping[str, Mapping[str, Any]]) -> str:
    if not entries:
        return ""
    lines = []
    for entry in entries.values():
        results = entry.get("result")
        if results is None:
            lines.append([entry["title"], "", _why(entry), ""])
        for test in results or ():
            # A message may hold what Markdown takes for a column.
            said = test["message"].replace("|", "¦")
            outcome = test["outcome"] + (f": {said}" if said else "")
            lines.append([entry["title"], f"`{test['name']}`", outcome, f"{test['seconds']:.0f} s"])
    return f"### Tests\n\n{_table(('', 'test', 'outcome', 'time'), lines)}\n\n{_commands(entries)}"


def _why(entry: Mapping[str, Any]) -> str:
    """Returns why there is no result of a part."""
    if entry["status"] == "left out":
        return f"{_NOT_MEASURED}, {entry['why']}"
    said = [line for line in entry["output"].splitlines() if line.strip()]
    last = f": {said[-1].strip()}".replace("|", "¦") if said and entry["status"] == "failed" else ""
    return f"{_NOT_MEASURED}, {entry['status']}{last}"


def _commands(entries: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(("```sh", *(entry["command"] for entry in entries.values()), "```"))


def _table(heading: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [heading, ["---"] * len(heading), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _top1(share: float | None) -> str:
    return _NOT_MEASURED if share is None else f"{100 * share:.2f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"


def _gigaflop(flops: float) -> str:
    return f"{flops / 1e9:.2f} GFLOP"
