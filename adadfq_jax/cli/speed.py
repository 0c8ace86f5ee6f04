"""What the verb `benchmark` does with an exported file: time it beside its teacher, by engine."""

import statistics
from pathlib import Path
from typing import Any

from adadfq_jax.benchmarks import serving
from adadfq_jax.config.fields import FORMAT_BY_SUFFIX
from adadfq_jax.devices import machine
from adadfq_jax.errors import ConfigError
from adadfq_jax.exporting import engines
from adadfq_jax.exporting.load import import_onnx
from adadfq_jax.exporting.onnx_options import OnnxOptions
from adadfq_jax.exporting.quantized import take_apart
from adadfq_jax.storage.files import on_a_disk
from adadfq_jax.teachers.load import load_teacher

_BUSY = 0.5  # load average of the last minute above which times are doubtful


def measure_file(
    model: str | Path,
    against: str | Path | None = None,
    *,
    engine: str | None = None,
    threads: int | None = None,
    calls: int = 10,
    rounds: int = 5,
) -> dict[str, Any]:
    """Times an exported file and its teacher in turns.

    Args:
      model: an .onnx file of `adadfq export`.
      against: a teacher's file, which runs in floating point with its BatchNorms folded.
      engine: of `engines.ENGINES`; None for all that are installed.
      threads: of an engine; None for as many as there are cores.
      calls, rounds: see `serving.images_per_second`.

    Returns:
      The measurements, as `adadfq benchmark --model=FILE --json` prints them.

    Raises:
      ConfigError: the file is of another format, or the teacher of another size.
      ExportError: the file cannot be read or run, or an engine is not installed.
    """
    path = on_a_disk(model)
    if FORMAT_BY_SUFFIX.get(path.suffix) != "onnx":
        raise ConfigError(f"only files of ONNX (.onnx) are timed, not {str(path)!r}.")
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}.")
    for name in [engine] if engine else ["onnxruntime"]:
        engines.require(name)
    onnx_qdq = import_onnx()
    described, content = onnx_qdq.read(path)
    contents = {"file": content}
    if against is not None:
        teacher = load_teacher(against)
        if teacher.image_size != described["image_size"]:
            raise ConfigError(
                f"the teacher has images of {teacher.image_size} pixels, and the file of "
                f"{described['image_size']}."
            )
        built = onnx_qdq.build(take_apart(teacher), {}, OnnxOptions(fold_norms=True))
        contents["teacher"] = built.SerializeToString()
    threads = threads or machine.cores()
    sessions = {
        (what, name): engines.open_session(content, name, threads)
        for name in ([engine] if engine else engines.installed())
        for what, content in contents.items()
    }
    versions = {name: session.version for (_, name), session in sessions.items()}
    about = serving.processor()
    speeds = serving.images_per_second(
        {key: session.answer for key, session in sessions.items()},
        sessions["file", next(iter(versions))].input_shape,
        calls=calls,
        rounds=rounds,
    )
    rows = [
        {
            "model": what,
            "engine": name,
            "batch_size": count,
            "images_per_second": statistics.median(found[what, name]),
            "ratio": serving.ratio(found[what, name], found["teacher", name])
            if against is not None
            else None,
        }
        for count, found in speeds.items()
        for what, name in sessions
    ]
    layers, form = onnx_qdq.layers(content), described.get("form", "exact")
    usual = "the engine's choice" if form == "integer" else "the file has the exact form"
    integer = {
        name: sorted(session.integer_layers() & set(layers), key=layers.index)
        for (what, name), session in sessions.items()
        if what == "file"
    }
    return about | {
        "threads": threads,
        "versions": versions,
        "form": form,
        "rows": rows,
        "integer_layers": integer,
        "float_layers": {
            name: {
                layer: described.get("not_integer", {}).get(layer, usual)
                for layer in layers
                if layer not in found
            }
            for name, found in integer.items()
        },
    }


def speed_table(result: dict[str, Any]) -> str:
    """Formats a result of `measure_file` as a plain table."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        f"{'processor':<22}{result['processor']}, {', '.join(result['flags'])}",
        f"{'engines':<22}{versions}, {result['threads']} threads",
        f"{'form':<22}{result['form']}",
        "",
        f"{'engine':<14}{'model':<10}{'batch':>6}{'images/s':>12}{'of the teacher':>16}",
    ]
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        lines.append(
            f"{row['engine']:<14}{row['model']:<10}{row['batch_size']:>6}"
            f"{row['images_per_second']:>12.1f}{ratio:>16}"
        )
    for engine, layers in result["integer_layers"].items():
        others = result["float_layers"][engine]
        lines += [
            "",
            f"{engine} computes {len(layers)} of {len(layers) + len(others)} layers in integers"
            + (", and in floating point:" if others else "."),
        ]
        for reason in sorted(set(others.values())):
            names = [name for name, why in others.items() if why == reason]
            lines.append(f"  {', '.join(names)}: {reason}")
    if result["load"] > _BUSY:
        lines += ["", f"The machine was busy (load {result['load']:.1f}): read ratios only."]
    return "\n".join(lines)
