"""The command line: verbs to functions, exceptions to one sentence and an exit code.

The only place that ends the process, listens to signals or configures JAX.

Exit codes: 0 complete; 2 bad input; 3 the game diverged; 4 a verification failed; 75 stopped by a
signal, 130 by Ctrl-C, both with a checkpoint written once `quantize` plays; 75 too where Cloud
Storage is not reached. After 75 the same command goes on.
"""

import contextlib
import itertools
import json
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from adadfq_jax import __version__, memory
from adadfq_jax.errors import (
    AdaDFQError,
    ConfigError,
    DivergedError,
    StoppedError,
    StorageError,
    VerificationError,
    nearest,
)
from adadfq_jax.streams import finish_output, make_output_safe

_COMPLETE, _BAD_INPUT, _DIVERGED, _UNVERIFIED, _INTERRUPTED = 0, 2, 3, 4, 130
_STOPPED = os.EX_TEMPFAIL  # 75


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb and ends the process with its exit code."""
    make_output_safe()
    # To the very end, when tensorstore's threads may still say it.
    sys.unraisablehook = _show_unraisable
    code = run(sys.argv[1:] if argv is None else argv)
    sys.exit(code or (_COMPLETE if finish_output() else _BAD_INPUT))


def run(argv: Sequence[str]) -> int:
    """Runs a verb.

    Args:
      argv: the verb and its flags.

    Returns:
      The exit code.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return _COMPLETE if argv else _BAD_INPUT
    if argv[0] == "--version":
        print(f"adadfq_jax {__version__}")
        return _COMPLETE
    verb, *rest = argv
    try:
        if verb not in _VERBS:
            raise ConfigError(f"unknown verb {verb!r}: {nearest(verb, _VERBS)}")
        function, _ = _VERBS[verb]
        memory.keep()
        with _plain_speech():
            function(rest)
    except AdaDFQError as error:
        print(f"adadfq {verb}: {_one_line(error)}", file=sys.stderr)
        return _exit_code(error)
    except OSError as error:  # a full disk, a folder without permission
        print(f"adadfq {verb}: {_one_line(error)}.", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        return _INTERRUPTED
    return _COMPLETE


def _exit_code(error: AdaDFQError) -> int:
    match error:
        case DivergedError():
            return _DIVERGED
        case StorageError():
            return _STOPPED
        case VerificationError():
            return _UNVERIFIED
        case StoppedError():
            return _INTERRUPTED if error.signal == signal.SIGINT else _STOPPED
    return _BAD_INPUT


def _quantize(argv: Sequence[str]) -> None:
    """play a game: quantize a teacher without its data"""
    values = flags.FlagValues()
    _define_config(values, "quantize", argv)
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
    _define_cache(values)
    if _asks_for_help(argv):
        names = ("config", "workdir", "distributed", "coordinator", "processes", "process", "cache")
        print(_help(values, "quantize", names))
        return
    config = _parse_config(values, "quantize", argv)
    if not values.workdir:
        raise ConfigError("--workdir=DIR is missing: where the run's files should go.")

    others = (values.coordinator, values.processes, values.process)
    if not values.distributed and others != (None,) * 3:
        raise ConfigError("--coordinator, --processes and --process need --distributed.")

    from adadfq_jax import processes, training

    _keep_compiled_programs(values.cache)
    _divide_cpu(config)
    if values.distributed:
        print(processes.start(*others), file=sys.stderr)
    with _listening() as received, processes.leaving_at_once():
        student = training.quantize(
            config, workdir=values.workdir, should_stop=lambda: received[-1]
        )
    if processes.leads():
        print(training.table(student.result))
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
        "mean": "normalisation, three numbers with commas between, or a preset: imagenet, "
        "cifar10, cifar10-pytorchcv; by default the file's",
        "std": "the same; a preset given for one of both stands for both",
        "checkpoint": "of a run: last (by default), best (the healthiest, chosen without data), or "
        "the number of a step",
        "architecture": "name of the network, where the file leaves two open",
        "entry": "which entry of a PyTorch checkpoint holds the weights",
        "prefix": "what stands before the names of the network's weights, such as backbone",
    }
    for name, help_text in texts.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    flags.DEFINE_integer("image_size", None, "side of the images in pixels", flag_values=values)
    _define_pixel_units(values)
    flags.DEFINE_list(
        "bits",
        [],
        "bit-widths such as w8a8,w4a4,w3a3: measure students of the teacher that are not trained",
        flag_values=values,
    )
    numbers = {
        "calibration": (512, "with --bits, real images that give ranges"),
        "epochs": (4, "with --bits, epochs of 200 steps that give ranges from generated images"),
        "batch_size": (256, "images at a time"),
    }
    for name, (default, help_text) in numbers.items():
        flags.DEFINE_integer(name, default, help_text, lower_bound=1, flag_values=values)
    flags.DEFINE_bool("json", False, "print one JSON object instead of tables", flag_values=values)
    _define_cache(values)
    if _asks_for_help(argv):
        names = (*texts, "image_size", "pixel_units", "bits", *numbers, "json", "cache")
        print(_help(values, "evaluate", names))
        return
    _parse(values, "evaluate", argv)

    from adadfq_jax import measuring
    from adadfq_jax.teachers import parse_normalisation

    _keep_compiled_programs(values.cache)
    mean, std = parse_normalisation(values.mean, values.std)
    network, source, path, labels = measuring.open_network(
        values.teacher,
        values.workdir,
        values.model,
        checkpoint=values.checkpoint,
        architecture=values.architecture,
        mean=mean,
        std=std,
        image_size=values.image_size,
        entry=values.entry,
        prefix=values.prefix,
        pixel_units=values.pixel_units,
    )
    if values.source:
        source, path, labels = values.source, values.path, None
    measured = measuring.measure(
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
        "architecture": "name of the network, where the input leaves two open",
        "mean": "normalisation, three numbers with commas between, or a preset: imagenet, "
        "cifar10, cifar10-pytorchcv",
        "std": "the same; a preset given for one of both stands for both",
        "entry": "which entry of the checkpoint holds the weights",
        "prefix": "what stands before the names of the network's weights, such as backbone",
    }
    for name, help_text in texts.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    flags.DEFINE_integer("image_size", None, "side of the images in pixels", flag_values=values)
    _define_pixel_units(values)
    flags.DEFINE_bool("overwrite", False, "replace the file where it exists", flag_values=values)
    if _asks_for_help(argv):
        print(_help(values, "convert", (*texts, "image_size", "pixel_units", "overwrite")))
        return
    _parse(values, "convert", argv)
    for name in ("input", "output"):
        if not values[name].value:
            raise ConfigError(f"--{name}=FILE is missing: {texts[name]}.")

    from adadfq_jax import convert
    from adadfq_jax.teachers import parse_normalisation

    mean, std = parse_normalisation(values.mean, values.std)
    teacher = convert.convert(
        values.input,
        values.output,
        architecture=values.architecture,
        mean=mean,
        std=std,
        image_size=values.image_size,
        entry=values.entry,
        prefix=values.prefix,
        pixel_units=values.pixel_units,
        overwrite=values.overwrite,
    )
    print(convert.summary(teacher))
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
    _define_cache(values)
    if _asks_for_help(argv):
        print(_help(values, "export", (*texts, *switches, "cache")))
        return
    _parse(values, "export", argv)
    if not values.output:
        raise ConfigError(f"--output is missing: {texts['output']}.")
    if bool(values.workdir) == bool(values.teacher):
        raise ConfigError("give either --workdir=DIR or --teacher=FILE: what to export.")
    if values.teacher and values.checkpoint:
        raise ConfigError("--checkpoint is of a run; a teacher has none.")

    from adadfq_jax import exporting
    from adadfq_jax.storage import on_a_disk
    from adadfq_jax.student import load_finished_student
    from adadfq_jax.teachers import load_teacher

    _keep_compiled_programs(values.cache)
    options = {name: values[name].value for name in switches}
    exporting.check_output(on_a_disk(values.output), values.format, **options)
    report = exporting.export(
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
    _define_config(values, "benchmark", argv)
    flags.DEFINE_integer("steps", 10, "steps in a round", 1, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "turns that all take", 1, flag_values=values)
    flags.DEFINE_bool("parts", True, "also time the parts of a step", flag_values=values)
    flags.DEFINE_string(
        "against", None, "torch: PyTorch plays the paper's game in turns", flag_values=values
    )
    flags.DEFINE_integer(
        "games", 0, "also time so many games, in each way to play them", 0, flag_values=values
    )
    flags.DEFINE_string("profile", None, "new folder for a trace of play", flag_values=values)
    flags.DEFINE_bool("json", False, "print one JSON object instead of tables", flag_values=values)
    if _asks_for_help(argv):
        names = ("config", "steps", "rounds", "parts", "against", "games", "profile", "json")
        print(_help(values, "benchmark", names))
        return
    config = _parse_config(values, "benchmark", argv)

    # Without kept programs: compilation is measured.
    from adadfq_jax import benchmark, benchmark_table

    _divide_cpu(config)
    measured = benchmark.benchmark(
        config,
        steps=values.steps,
        rounds=values.rounds,
        parts=values.parts,
        against=values.against,
        profile=values.profile,
        games=values.games,
    )
    print(json.dumps(measured) if values.json else benchmark_table.table(measured))


def _precompile(argv: Sequence[str]) -> None:
    """compile a game's step for a TPU slice that is not there, and tell what it asks of it"""
    values = flags.FlagValues()
    _define_config(values, "precompile", argv)
    flags.DEFINE_list(
        "topology", [], "slices, such as v5e:4x4 or v5e:2x2,v5e:4x4", flag_values=values
    )
    flags.DEFINE_bool("json", False, "print one JSON object instead of a table", flag_values=values)
    if _asks_for_help(argv):
        print(_help(values, "precompile", ("config", "topology", "json")))
        return
    config = _parse_config(values, "precompile", argv)
    if not values.topology:
        raise ConfigError("--topology=NAME is missing: the slice to compile for, such as v5e:4x4.")

    from adadfq_jax import precompile

    measured = precompile.precompile(config, values.topology)
    print(json.dumps(measured) if values.json else precompile.table(measured))


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
    _define_cache(values)
    if _asks_for_help(argv):
        print(_help(values, "sample", (*texts, "count", "overwrite", "cache")))
        return
    _parse(values, "sample", argv)
    for name in ("workdir", "count", "output"):
        if values[name].value in (None, ""):
            raise ConfigError(f"--{name} is missing: {values[name].help}.")

    from adadfq_jax import sampling

    _keep_compiled_programs(values.cache)
    sampling.write_samples(values.workdir, values.count, values.output, overwrite=values.overwrite)
    print(f"{'images':<22}{values.count}")
    print(f"{'files':<22}{values.output}")


def _sweep(argv: Sequence[str]) -> None:
    """play every game of a grid, and tabulate them"""
    _play_grid("sweep", argv)


def _surface(argv: Sequence[str]) -> None:
    """play a game for every lambda_l and lambda_u of a grid, and draw their accuracy"""
    _play_grid("surface", argv, surface=True)


_SURFACE = "game.lambda_l=0,0.1,0.2,0.3,0.4;game.lambda_u=0.6,0.7,0.8,0.9,1"


def _play_grid(verb: str, argv: Sequence[str], surface: bool = False) -> None:
    values = flags.FlagValues()
    _define_config(values, verb, argv)
    flags.DEFINE_string(
        "grid",
        _SURFACE if surface else None,
        "fields and their values: 'bits=w3a3,w4a4;seed=0..4;game.method=gdfq,adadfq'"
        + (f"; by default {_SURFACE!r}" if surface else ""),
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
    _define_cache(values)
    if _asks_for_help(argv):
        print(_help(values, verb, ("config", "grid", "workdir", "jobs", "table", "cache")))
        return
    config = _parse_config(values, verb, argv)
    for name, what in (
        ("grid", "'FIELD=VALUE,VALUE;FIELD=LOWEST..HIGHEST' is missing: what to play."),
        ("workdir", "DIR is missing: where the games' folders should go."),
    ):
        if not values[name].value:
            raise ConfigError(f"--{name}={what}")

    import jax

    from adadfq_jax import parallel, reporting, sweep, sweep_table
    from adadfq_jax.grid import plan

    points = plan(config, values.grid)
    if surface:
        reporting.require_packages()
        reporting.check_surface(points, values.workdir)
    _keep_compiled_programs(values.cache)
    shares = parallel.shares_of_accelerators(values.jobs)
    if len(shares) > 1:
        jax.config.update("jax_platforms", "cpu")  # this process leaves the devices to the others
    parallel.divide_cpu(math.gcd(*(point.config.batch_size for point in points)))
    games = sweep.Sweep(points, values.workdir)
    with _listening() as received:
        if len(shares) > 1:
            command = [sys.executable, "-m", "adadfq_jax", verb, *argv, "--jobs=1", "--notable"]
            games.play_in_processes(command, shares, lambda: received[-1])
        else:
            games.play(lambda: received[-1], show_progress=sys.stderr.isatty())
    table = games.write_tables()
    if values.table:
        print(sweep_table.markdown(table), end="")
        print(f"\nfiles: {games.path / 'table.md'}, .csv, .json")
        if surface:
            reporting.write_report(values.workdir, overwrite=True, games=False)
            print(f"heat map: {games.path / reporting.REPORT}")
    if table["diverged"]:
        raise DivergedError(
            f"{len(table['diverged'])} of {len(points)} games diverged: "
            f"{', '.join(table['diverged'])}; the others are in the table."
        )


def _report(argv: Sequence[str]) -> None:
    """describe a run on one page that needs no network, with findings in plain words"""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of a run, or of a sweep", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace an earlier report", flag_values=values)
    _define_cache(values)
    if _asks_for_help(argv):
        print(_help(values, "report", ("workdir", "overwrite", "cache")))
        return
    _parse(values, "report", argv)
    if not values.workdir:
        raise ConfigError("--workdir=DIR is missing: the folder of a run, or of a sweep.")

    from adadfq_jax import reporting

    _keep_compiled_programs(values.cache)
    for finding in reporting.write_report(values.workdir, overwrite=values.overwrite):
        print(f"{finding.level:<10}{finding.text}")
    print(f"{'file':<10}{Path(values.workdir, reporting.REPORT)}")


_VERBS: dict[str, tuple[Callable[[Sequence[str]], None], str]] = {
    "quantize": (_quantize, _quantize.__doc__),
    "convert": (_convert, _convert.__doc__),
    "evaluate": (_evaluate, _evaluate.__doc__),
    "export": (_export, _export.__doc__),
    "benchmark": (_benchmark, _benchmark.__doc__),
    "precompile": (_precompile, _precompile.__doc__),
    "sample": (_sample, _sample.__doc__),
    "sweep": (_sweep, _sweep.__doc__),
    "surface": (_surface, _surface.__doc__),
    "report": (_report, _report.__doc__),
}


def _usage() -> str:
    verbs = "\n".join(f"  {name:<12}{text}" for name, (_, text) in _VERBS.items())
    return f"usage: adadfq VERB [--flag=value …]\n\n{verbs}\n\nadadfq VERB --help tells its flags."


def _define_config(values: flags.FlagValues, verb: str, argv: Sequence[str]) -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        help_string="configuration file, with bit-widths: configs/digits_resnet20.py:w4a4; "
        "--config.FIELD=VALUE sets a field",
        flag_values=values,
        sys_argv=[verb, *argv],
    )


def _parse_config(values: flags.FlagValues, verb: str, argv: Sequence[str]) -> Any:
    """Parses the flags of a verb that has --config; returns the configuration."""
    _check_config_flags(argv)
    _parse(values, verb, argv)
    if not values["config"].present:
        raise ConfigError("--config=FILE is missing, such as --config=configs/digits_resnet20.py.")
    if not hasattr(values.config, "to_dict"):
        raise ConfigError(f"the configuration file returned {values.config!r}, not a ConfigDict.")
    return values.config


def _parse(values: flags.FlagValues, verb: str, argv: Sequence[str]) -> None:
    """Parses a verb's flags; anything wrong becomes a ConfigError."""
    try:
        left_over = values([verb, *argv])[1:]
    except AdaDFQError:
        raise
    except flags.Error as error:
        raise ConfigError(_without_traceback(error)) from error
    except Exception as error:  # the configuration file is a program, which may fail in any way
        raise ConfigError(
            f"the configuration file fails with {type(error).__name__}: {_one_line(error)}"
        ) from error
    if left_over:
        raise ConfigError(f"{left_over[0]!r} is not a flag; flags are written --name=value.")


def _check_config_flags(argv: Sequence[str]) -> None:
    """Checks the file of --config and the fields of --config.FIELD, before the file is executed."""
    from adadfq_jax.config import check_field

    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        name = name.removeprefix("-").removeprefix("-") if word.startswith("-") else ""
        if name == "config":
            path = Path((value if equals else following).partition(":")[0])
            if not path.is_file():
                others = (str(other) for other in path.parent.glob("*.py"))
                raise ConfigError(
                    f"there is no configuration file {str(path)!r}; {nearest(str(path), others)}"
                )
        elif name.startswith("config."):
            check_field(name.removeprefix("config."))


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(word in ("-h", "--help", "-help") for word in argv)


def _help(values: flags.FlagValues, verb: str, names: Sequence[str]) -> str:
    described = "\n".join(f"  --{name:<14}{values[name].help}" for name in names)
    return f"usage: adadfq {verb} --flag=value …: {_VERBS[verb][1]}\n\n{described}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _without_traceback(error: Exception) -> str:
    """ml_collections puts the traceback of a configuration file into its message."""
    first, *rest = str(error).strip().splitlines()
    first = re.sub(r"\('(.*)', .*\)$", r"\1", first)  # an error of two parts, printed as a tuple
    return f"{first} {rest[-1]}" if rest else first


@contextlib.contextmanager
def _plain_speech() -> Iterator[None]:
    """Shows warnings as one line each."""

    def show_warning(message, category, filename, lineno, file=None, line=None):
        del category, filename, lineno, file, line
        print(f"warning: {message}", file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, show_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def _show_unraisable(unraisable) -> None:
    # From tensorstore's threads, when the first damaged array has ended a checkpoint's reading.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _define_pixel_units(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "pixel_units",
        1,
        "what a white pixel is in the units of --mean and --std: 1, or 255, which divides both by "
        "255",
        flag_values=values,
    )


def _define_cache(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "cache",
        str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "adadfq_jax").expanduser()),
        "folder of compiled programs, empty for none",
        flag_values=values,
    )


def _keep_compiled_programs(folder: str) -> None:
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)


def _divide_cpu(config: Any) -> None:
    """Divides the CPU for a game, before it checks its configuration and JAX looks for devices."""
    from adadfq_jax import parallel
    from adadfq_jax.config import validate

    validate(config.copy_and_resolve_references())
    parallel.divide_cpu(config.batch_size)


@contextlib.contextmanager
def _listening() -> Iterator[list[int | None]]:
    """Collects SIGTERM and SIGINT, so that a run can end between two steps; a second one kills."""
    received: list[int | None] = [None]

    def receive(number, _frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
