"""The verbs: the values of flags in, one call, a text out."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adadfq_jax.cli.process import (
    divide_cpu_for,
    keep_compiled_programs,
    listening,
    need_no_devices,
)
from adadfq_jax.errors import ConfigError, DivergedError, require_extra

# Tells a process that it is one of a sweep's jobs, whose table another one writes.
JOB = "--notable"


def _quantize(given: SimpleNamespace) -> None:
    """quantize a teacher without its data"""
    others = (given.coordinator, given.processes, given.process)
    if not given.distributed and others != (None,) * 3:
        raise ConfigError("--coordinator, --processes and --process need --distributed.")

    from adadfq_jax.cli import ending
    from adadfq_jax.devices import processes
    from adadfq_jax.training import quantize

    keep_compiled_programs(given.cache)
    divide_cpu_for(given.config)
    if given.dry_run:
        print(quantize.check(given.config, given.workdir))
        return
    if given.distributed:
        print(processes.start(*others), file=sys.stderr)
    with listening() as received, processes.leaving_at_once():
        student = quantize.quantize(
            given.config, workdir=given.workdir, should_stop=lambda: received[-1]
        )
    if processes.leads():
        print(ending.ending(student, given.workdir))


def _evaluate(given: SimpleNamespace) -> None:
    """measure a teacher, a run's student, or what quantization without training would cost"""
    from adadfq_jax.cli import evaluate
    from adadfq_jax.config.fields import default_config

    keep_compiled_programs(given.cache)
    if given.bits:
        divide_cpu_for(default_config())  # a generator is trained, in batches of the default
    if sum(map(bool, (given.teacher, given.workdir, given.model))) == 1:
        evaluate.check_images(given.workdir, given.source, given.bits)
    network, source, path, labels = evaluate.open_network(
        given.teacher,
        given.workdir,
        given.model,
        engine=given.engine,
        stated=_stated(given),
        checkpoint=given.checkpoint,
    )
    if given.source:
        source, path, labels = given.source, given.path, None
    measured = evaluate.measure(
        network,
        source,
        given.path or path,
        given.labels or labels,
        bits=given.bits,
        ranges=given.ranges,
        calibration=given.calibration,
        epochs=given.epochs,
        quick=given.quick,
        batch_size=given.batch_size,
        show_progress=not given.json,
    )
    if given.json:
        print(measured.to_json())
        return
    print(
        evaluate.file_row(given.model) + measured.to_text() if given.model else measured.to_text()
    )


def _convert(given: SimpleNamespace) -> None:
    """turn a PyTorch checkpoint into a file that says all there is to say about its network"""
    from adadfq_jax.evaluation.original import describe_teacher, prove
    from adadfq_jax.teachers.convert import convert

    stated = _stated(given)
    teacher = convert(
        given.input,
        given.output,
        stated,
        network=given.network,
        overwrite=given.overwrite,
        prove=prove,
    )
    print(describe_teacher(teacher))
    print(f"{'file':<22}{given.output}")


def _allocate(given: SimpleNamespace) -> None:
    """choose bit-widths by layer under a budget of size or of bit operations, without data"""
    from adadfq_jax.allocation import allocate, play
    from adadfq_jax.cli import allocation
    from adadfq_jax.config.fields import default_config
    from adadfq_jax.teachers.load import read_teacher

    keep_compiled_programs(given.cache)
    allocation.check_output(given.output, overwrite=given.overwrite)
    data = play.data_of(given.play, given.source, given.path, given.labels)
    if given.play or not given.quick:
        divide_cpu_for(default_config())  # something is trained, in batches of the default
    teacher = read_teacher(given.teacher, _stated(given))
    play.check_images(teacher, data)
    found = allocate.allocate(
        teacher,
        given.budget,
        budget_of=given.budget_of,
        measure=given.measure,
        choices=allocation.bit_widths(given.choices),
        fixed=given.fixed,
        groups=given.groups,
        sums=given.sums,
        images=given.images,
        quick=given.quick,
        epochs=given.epochs,
        checks=given.checks,
        show_progress=True,
    )
    found.save(given.output)
    print(found.to_text())
    if given.play:
        print()
        print(play.played_table(play.play(found, given.play, data)))
    print(allocation.files_and_next(found, given.teacher, given.output))


def _export(given: SimpleNamespace) -> None:
    """write a run's student to a file, after proving that the file is the student"""
    if bool(given.workdir) == bool(given.teacher):
        raise ConfigError("give either --workdir=DIR or --teacher=FILE: what to export.")
    if given.teacher and given.checkpoint:
        raise ConfigError("--checkpoint is of a run; a teacher has none.")

    from adadfq_jax.exporting import export
    from adadfq_jax.exporting.load import require
    from adadfq_jax.exporting.onnx_options import OnnxOptions
    from adadfq_jax.storage.files import on_a_disk
    from adadfq_jax.teachers.load import load_teacher
    from adadfq_jax.training.student import load_finished_student

    keep_compiled_programs(given.cache)
    names = ("form", "storage", "opset", "fold_norms", "raw_pixels")
    options = {name: getattr(given, name) for name in names}
    require(
        export.check_output(
            on_a_disk(given.output),
            given.format,
            overwrite=given.overwrite,
            options=OnnxOptions(**options),
        )
    )
    report = export.export(
        load_finished_student(given.workdir, given.checkpoint)
        if given.workdir
        else load_teacher(given.teacher),
        given.output,
        given.format,
        overwrite=given.overwrite,
        **options,
    )
    print(report.to_text())
    print(f"{'file':<22}{given.output}")


def _benchmark(given: SimpleNamespace) -> None:
    """time the steps of a run, and their parts; or an exported file"""
    if (given.config is None) == (given.model is None):
        raise ConfigError("give either --config=NAME or --model=FILE: what to time.")
    if given.model:
        if given.profile:
            raise ConfigError("--profile is of a run: give --config=NAME.")
        from adadfq_jax.cli import speed

        measured = speed.measure_file(
            given.model,
            given.against,
            engine=given.engine,
            threads=given.threads,
            calls=given.steps,
            rounds=given.rounds,
        )
        print(json.dumps(measured) if given.json else speed.speed_table(measured))
        return
    if given.engine or given.threads:
        raise ConfigError("--engine and --threads are of an exported file: give --model=FILE.")
    if given.against == "torch":
        require_extra("torch", "--against=torch")

    # Without kept programs: compilation is measured.
    from adadfq_jax.benchmarks import benchmark
    from adadfq_jax.benchmarks.table import benchmark_table

    divide_cpu_for(given.config)
    measured = benchmark.benchmark(
        given.config,
        steps=given.steps,
        rounds=given.rounds,
        parts=given.parts,
        against=given.against,
        profile=given.profile,
    )
    print(json.dumps(measured) if given.json else benchmark_table(measured))


def _precompile(given: SimpleNamespace) -> None:
    """compile a run's step for GPUs or TPUs that are not there, and tell what it asks of them"""
    from adadfq_jax.benchmarks import precompile

    need_no_devices()
    measured = precompile.precompile(given.config, given.topology)
    print(json.dumps(measured) if given.json else precompile.precompile_table(measured))


def _sample(given: SimpleNamespace) -> None:
    """write images that a run's generator makes, with labels and the teacher's logits"""
    from adadfq_jax.training import samples

    keep_compiled_programs(given.cache)
    shared = samples.write_samples(
        given.workdir, given.count, given.output, overwrite=given.overwrite
    )
    print(f"{'images':<22}{given.count}")
    print(f"{'labels':<22}the teacher gives {shared:.1%} of the images the class of their label")
    print(f"{'files':<22}{given.output}")


def _sweep(given: SimpleNamespace) -> None:
    """train every run of a grid, and tabulate them"""
    from adadfq_jax.sweeps.grid import plan
    from adadfq_jax.sweeps.table import table_markdown

    keep_compiled_programs(given.cache)
    games = _play_sweep(plan(given.config, given.grid), given)
    table = games.write_tables()
    if given.table:
        print(table_markdown(table), end="")
        print(f"\nfiles: {games.path / 'table.md'}, .csv, .json")
        print(f"\nnext:\n  adadfq report --workdir={games.path}")
    if table["diverged"]:
        raise DivergedError(
            f"{len(table['diverged'])} of {len(games.points)} runs diverged: "
            f"{', '.join(table['diverged'])}; the others are in the table."
        )


def _play_sweep(points: Sequence, given: SimpleNamespace):
    """Plays a sweep here, or divides this machine among processes that do; returns the sweep."""
    import jax

    from adadfq_jax.devices import machine
    from adadfq_jax.sweeps.sweep import Sweep

    shares = machine.shares_of_accelerators(given.jobs)
    if len(shares) > 1:
        jax.config.update("jax_platforms", "cpu")  # this process leaves the devices to the others
    machine.divide_cpu(math.gcd(*(point.config.batch_size for point in points)))
    games = Sweep(points, given.workdir)
    with listening() as received:
        if len(shares) > 1:
            command = [
                sys.executable,
                "-m",
                "adadfq_jax",
                "sweep",
                *given.argv,
                "--jobs=1",
                JOB,
            ]
            games.play_in_processes(command, shares, lambda: received[-1])
        else:
            # Of several jobs each writes lines, since bars would be drawn over each other.
            alone = JOB not in given.argv
            games.play(lambda: received[-1], show_progress=alone and sys.stderr.isatty())
    return games


def _report(given: SimpleNamespace) -> None:
    """describe a run on one page that needs no network, with findings in plain words"""
    from adadfq_jax.reporting import write
    from adadfq_jax.training import workdir

    keep_compiled_programs(given.cache)
    for finding in write.write_report(given.workdir, overwrite=given.overwrite):
        print(f"{finding.level:<10}{finding.text}")
    print(f"{'file':<10}{Path(given.workdir, workdir.REPORT)}")


def _measure(given: SimpleNamespace) -> None:
    """measure what this machine does, in a given time, and print it as tables"""
    from adadfq_jax.measuring import session
    from adadfq_jax.measuring.tables import tables

    with listening() as received:
        measured = session.measure(
            given.output,
            workdir=given.workdir or f"{given.output}_runs",
            minutes=given.minutes,
            teacher=given.teacher,
            images=given.images,
            platform=given.platform,
            wanted=given.parts,
            rehearse=given.rehearse,
            dry_run=given.dry_run,
            commit=given.commit,
            should_stop=lambda: received[-1],
        )
    if not given.dry_run:
        print(tables(measured), end="")


def _stated(given: SimpleNamespace) -> Any:
    """Returns what the flags state of a teacher, as a `Stated`."""
    from adadfq_jax.teachers.normalisation import parse_normalisation
    from adadfq_jax.teachers.stated import Stated

    mean, std = parse_normalisation(given.mean, given.std)
    return Stated(
        architecture=given.architecture,
        mean=mean,
        std=std,
        image_size=given.image_size,
        entry=given.entry,
        prefix=given.prefix,
        preparation={
            name: getattr(given, name)
            for name in ("resize", "interpolation", "crop")
            if getattr(given, name) is not None
        },
        pixel_units=given.pixel_units,
    )


VERBS: dict[str, Callable[[SimpleNamespace], None]] = {
    "quantize": _quantize,
    "convert": _convert,
    "evaluate": _evaluate,
    "allocate": _allocate,
    "export": _export,
    "benchmark": _benchmark,
    "precompile": _precompile,
    "sample": _sample,
    "sweep": _sweep,
    "report": _report,
    "measure": _measure,
}
