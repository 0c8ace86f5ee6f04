"""The verbs: flags in, one call, a text out."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from adadfq_jax.cli.flags import (
    asks_for_help,
    define_cache,
    define_config,
    define_stated,
    describe,
    parse,
    parse_config,
    stated_by,
)
from adadfq_jax.cli.process import divide_cpu_for, keep_compiled_programs, listening
from adadfq_jax.errors import ConfigError, DivergedError


def _quantize(argv: Sequence[str]) -> None:
    """play a game: quantize a teacher without its data"""
    values = flags.FlagValues()
    define_config(values, "quantize", argv)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_bool(
        "distributed",
        False,
        "play with the other processes that are started so; on Cloud TPU and under Slurm this is "
        "enough, elsewhere give the next three",
        flag_values=values,
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many there are", 1, flag_values=values)
    flags.DEFINE_integer("process", None, "which one this is, from 0", 0, flag_values=values)
    define_cache(values)
    if asks_for_help(argv):
        names = ("config", "workdir", "distributed", "coordinator", "processes", "process", "cache")
        print(describe(values, "quantize", _quantize.__doc__, names))
        return
    config = parse_config(values, "quantize", argv)
    if not values.workdir:
        raise ConfigError("--workdir=DIR is missing: where the run's files should go.")

    others = (values.coordinator, values.processes, values.process)
    if not values.distributed and others != (None,) * 3:
        raise ConfigError("--coordinator, --processes and --process need --distributed.")

    from adadfq_jax.devices import processes
    from adadfq_jax.training import quantize

    keep_compiled_programs(values.cache)
    divide_cpu_for(config)
    if values.distributed:
        print(processes.start(*others), file=sys.stderr)
    with listening() as received, processes.leaving_at_once():
        student = quantize.quantize(
            config, workdir=values.workdir, should_stop=lambda: received[-1]
        )
    if processes.leads():
        print(student.result.to_text())
        print(f"{'files':<22}{values.workdir}")


def _evaluate(argv: Sequence[str]) -> None:
    """measure a teacher, a run's student, or what quantization without training would cost"""
    values = flags.FlagValues()
    texts = {
        "teacher": "a teacher's file",
        "workdir": "instead of it, the folder of a run, whose student is measured",
        "model": "instead of both, a file of `adadfq export`",
        "source": "the evaluation set: npz, folder, or tfds:NAME; by default the run's",
        "path": "its file or folder, or tensorflow-datasets' data_dir",
        "labels": "of a folder: a file that says which class folder is which class",
        "checkpoint": "of a run: last (by default), best (the healthiest, chosen without data), or "
        "the number of a step",
    }
    for name, help_text in texts.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    stated = define_stated(values)
    flags.DEFINE_list(
        "bits",
        [],
        "bit-widths such as w8a8,w4a4,w3a3: measure students of the teacher that are not trained",
        flag_values=values,
    )
    numbers = {
        "calibration": (None, "with --bits, real images that give ranges (512)"),
        "epochs": (None, "with --bits, epochs of 200 steps of generated images that do (4)"),
        "batch_size": (256, "images at a time"),
    }
    for name, (default, help_text) in numbers.items():
        flags.DEFINE_integer(name, default, help_text, lower_bound=1, flag_values=values)
    flags.DEFINE_bool("json", False, "print one JSON object instead of tables", flag_values=values)
    define_cache(values)
    if asks_for_help(argv):
        names = (*texts, *stated, "bits", *numbers, "json", "cache")
        print(describe(values, "evaluate", _evaluate.__doc__, names))
        return
    parse(values, "evaluate", argv)

    from adadfq_jax.cli import evaluate

    keep_compiled_programs(values.cache)
    network, source, path, labels = evaluate.open_network(
        values.teacher,
        values.workdir,
        values.model,
        stated=stated_by(values),
        checkpoint=values.checkpoint,
    )
    if values.source:
        source, path, labels = values.source, values.path, None
    measured = evaluate.measure(
        network,
        source,
        values.path or path,
        values.labels or labels,
        bits=values.bits,
        calibration=values.calibration,
        epochs=values.epochs,
        batch_size=values.batch_size,
        show_progress=not values.json,
    )
    print(measured.to_json() if values.json else measured.to_text())


def _convert(argv: Sequence[str]) -> None:
    """turn a PyTorch checkpoint into a file that says all there is to say about its network"""
    values = flags.FlagValues()
    texts = {
        "input": "a checkpoint file, or pytorchcv:NAME, torchvision:NAME, timm:NAME",
        "output": "the .safetensors file to write",
    }
    for name, help_text in texts.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    stated = define_stated(values)
    flags.DEFINE_bool("overwrite", False, "replace the file where it exists", flag_values=values)
    if asks_for_help(argv):
        print(describe(values, "convert", _convert.__doc__, (*texts, *stated, "overwrite")))
        return
    parse(values, "convert", argv)
    for name in ("input", "output"):
        if not values[name].value:
            raise ConfigError(f"--{name}=FILE is missing: {texts[name]}.")

    from adadfq_jax.evaluation.original import describe_teacher, prove
    from adadfq_jax.teachers.convert import convert

    teacher = convert(
        values.input, values.output, stated_by(values), overwrite=values.overwrite, prove=prove
    )
    print(describe_teacher(teacher))
    print(f"{'file':<22}{values.output}")


def _export(argv: Sequence[str]) -> None:
    """write a run's student to a file, after proving that the file is the student"""
    values = flags.FlagValues()
    texts = {
        "workdir": "the folder of the run",
        "teacher": "instead of it, a teacher's own file: in full precision, as onnx only",
        "output": "the file to write: .safetensors (integers), .onnx, .stablehlo, .pth (pytorch)",
        "format": "integers, onnx, stablehlo or pytorch; by default what the file's suffix says",
        "checkpoint": "last, or the number of a step: of a run that is not finished, or an earlier "
        "one that is still kept; best, for the one of the highest data-free health score",
    }
    switches = {
        "overwrite": "replace the file where it exists",
        "fold_norms": "onnx: fold BatchNorms into the convolutions before them",
        "raw_pixels": "onnx: take pixels in [0, 255] instead of normalised images",
    }
    for name, help_text in texts.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    for name, help_text in switches.items():
        flags.DEFINE_bool(name, False, help_text, flag_values=values)
    define_cache(values)
    if asks_for_help(argv):
        print(describe(values, "export", _export.__doc__, (*texts, *switches, "cache")))
        return
    parse(values, "export", argv)
    if not values.output:
        raise ConfigError(f"--output is missing: {texts['output']}.")
    if bool(values.workdir) == bool(values.teacher):
        raise ConfigError("give either --workdir=DIR or --teacher=FILE: what to export.")
    if values.teacher and values.checkpoint:
        raise ConfigError("--checkpoint is of a run; a teacher has none.")

    from adadfq_jax.exporting import export
    from adadfq_jax.storage.files import on_a_disk
    from adadfq_jax.teachers.load import load_teacher
    from adadfq_jax.training.student import load_finished_student

    keep_compiled_programs(values.cache)
    options = {name: values[name].value for name in switches}
    export.check_output(on_a_disk(values.output), values.format, **options)
    report = export.export(
        load_finished_student(values.workdir, values.checkpoint)
        if values.workdir
        else load_teacher(values.teacher),
        values.output,
        values.format,
        **options,
    )
    print(report.to_text())
    print(f"{'file':<22}{values.output}")


def _benchmark(argv: Sequence[str]) -> None:
    """time the steps of a game, and their parts"""
    values = flags.FlagValues()
    define_config(values, "benchmark", argv)
    flags.DEFINE_integer("steps", 10, "steps in a round", 1, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "turns that all take", 1, flag_values=values)
    flags.DEFINE_bool("parts", True, "also time the parts of a step", flag_values=values)
    flags.DEFINE_string(
        "against", None, "torch: PyTorch plays the paper's game in turns", flag_values=values
    )
    flags.DEFINE_string("profile", None, "new folder for a trace of play", flag_values=values)
    flags.DEFINE_bool("json", False, "print one JSON object instead of tables", flag_values=values)
    if asks_for_help(argv):
        names = ("config", "steps", "rounds", "parts", "against", "profile", "json")
        print(describe(values, "benchmark", _benchmark.__doc__, names))
        return
    config = parse_config(values, "benchmark", argv)

    # Without kept programs: compilation is measured.
    from adadfq_jax.benchmarks import benchmark
    from adadfq_jax.benchmarks.table import benchmark_table

    divide_cpu_for(config)
    measured = benchmark.benchmark(
        config,
        steps=values.steps,
        rounds=values.rounds,
        parts=values.parts,
        against=values.against,
        profile=values.profile,
    )
    print(json.dumps(measured) if values.json else benchmark_table(measured))


def _precompile(argv: Sequence[str]) -> None:
    """compile a game's step for a TPU slice that is not there, and tell what it asks of it"""
    values = flags.FlagValues()
    define_config(values, "precompile", argv)
    flags.DEFINE_list(
        "topology", [], "slices, such as v5e:4x4 or v5e:2x2,v5e:4x4", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print one JSON object instead of a table", flag_values=values)
    if asks_for_help(argv):
        print(describe(values, "precompile", _precompile.__doc__, ("config", "topology", "json")))
        return
    config = parse_config(values, "precompile", argv)
    if not values.topology:
        raise ConfigError("--topology=NAME is missing: the slice to compile for, such as v5e:4x4.")

    from adadfq_jax.benchmarks import precompile

    measured = precompile.precompile(config, values.topology)
    print(json.dumps(measured) if values.json else precompile.precompile_table(measured))


def _sample(argv: Sequence[str]) -> None:
    """write images that a run's generator makes, with labels and the teacher's logits"""
    values = flags.FlagValues()
    texts = {
        "workdir": "the folder of the run",
        "output": "FILE.npz, or FOLDER/ for one PNG an image and logits.npz",
    }
    for name, help_text in texts.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    flags.DEFINE_integer("count", None, "how many images", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace an earlier output", flag_values=values)
    define_cache(values)
    if asks_for_help(argv):
        print(describe(values, "sample", _sample.__doc__, (*texts, "count", "overwrite", "cache")))
        return
    parse(values, "sample", argv)
    for name in ("workdir", "count", "output"):
        if values[name].value in (None, ""):
            raise ConfigError(f"--{name} is missing: {values[name].help}.")

    from adadfq_jax.training import samples

    keep_compiled_programs(values.cache)
    samples.write_samples(values.workdir, values.count, values.output, overwrite=values.overwrite)
    print(f"{'images':<22}{values.count}")
    print(f"{'files':<22}{values.output}")


def _sweep(argv: Sequence[str]) -> None:
    """play every game of a grid, and tabulate them"""
    values = flags.FlagValues()
    define_config(values, "sweep", argv)
    flags.DEFINE_string(
        "grid",
        None,
        "fields and their values: 'bits=w3a3,w4a4;seed=0..4;game.method=gdfq,adadfq'",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "folder of the sweep", flag_values=values)
    flags.DEFINE_integer(
        "jobs",
        1,
        "processes to play in, among which this machine's cores or accelerators are divided; 0 for "
        "one each",
        0,
        flag_values=values,
    )
    flags.DEFINE_bool("table", True, "end with the table", flag_values=values)
    define_cache(values)
    if asks_for_help(argv):
        print(
            describe(
                values,
                "sweep",
                _sweep.__doc__,
                ("config", "grid", "workdir", "jobs", "table", "cache"),
            )
        )
        return
    config = parse_config(values, "sweep", argv)
    for name, what in (
        ("grid", "'FIELD=VALUE,VALUE;FIELD=LOWEST..HIGHEST' is missing: what to play."),
        ("workdir", "DIR is missing: where the games' folders should go."),
    ):
        if not values[name].value:
            raise ConfigError(f"--{name}={what}")

    from adadfq_jax.sweeps.grid import plan
    from adadfq_jax.sweeps.table import table_markdown

    keep_compiled_programs(values.cache)
    games = _play_sweep(plan(config, values.grid), values, argv)
    table = games.write_tables()
    if values.table:
        print(table_markdown(table), end="")
        print(f"\nfiles: {games.path / 'table.md'}, .csv, .json")
    if table["diverged"]:
        raise DivergedError(
            f"{len(table['diverged'])} of {len(games.points)} games diverged: "
            f"{', '.join(table['diverged'])}; the others are in the table."
        )


def _play_sweep(points: Sequence, values: flags.FlagValues, argv: Sequence[str]):
    """Plays a sweep here, or divides this machine among processes that do; returns the sweep."""
    import jax

    from adadfq_jax.devices import machine
    from adadfq_jax.sweeps.sweep import Sweep

    shares = machine.shares_of_accelerators(values.jobs)
    if len(shares) > 1:
        jax.config.update("jax_platforms", "cpu")  # this process leaves the devices to the others
    machine.divide_cpu(math.gcd(*(point.config.batch_size for point in points)))
    games = Sweep(points, values.workdir)
    with listening() as received:
        if len(shares) > 1:
            command = [sys.executable, "-m", "adadfq_jax", "sweep", *argv, "--jobs=1", "--notable"]
            games.play_in_processes(command, shares, lambda: received[-1])
        else:
            games.play(lambda: received[-1], show_progress=sys.stderr.isatty())
    return games


def _report(argv: Sequence[str]) -> None:
    """describe a run on one page that needs no network, with findings in plain words"""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of a run, or of a sweep", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace an earlier report", flag_values=values)
    define_cache(values)
    if asks_for_help(argv):
        print(describe(values, "report", _report.__doc__, ("workdir", "overwrite", "cache")))
        return
    parse(values, "report", argv)
    if not values.workdir:
        raise ConfigError("--workdir=DIR is missing: the folder of a run, or of a sweep.")

    from adadfq_jax.reporting import write
    from adadfq_jax.training import workdir

    keep_compiled_programs(values.cache)
    for finding in write.write_report(values.workdir, overwrite=values.overwrite):
        print(f"{finding.level:<10}{finding.text}")
    print(f"{'file':<10}{Path(values.workdir, workdir.REPORT)}")


VERBS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "quantize": (_quantize, _quantize.__doc__),
    "convert": (_convert, _convert.__doc__),
    "evaluate": (_evaluate, _evaluate.__doc__),
    "export": (_export, _export.__doc__),
    "benchmark": (_benchmark, _benchmark.__doc__),
    "precompile": (_precompile, _precompile.__doc__),
    "sample": (_sample, _sample.__doc__),
    "sweep": (_sweep, _sweep.__doc__),
    "report": (_report, _report.__doc__),
}
