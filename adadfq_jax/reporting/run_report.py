"""The page of one run's report."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import adadfq_jax
from adadfq_jax.config.identity import to_json
from adadfq_jax.data.dataset import Dataset
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import ConfigError, DataError
from adadfq_jax.evaluation.accuracy import logits_of, percent
from adadfq_jax.evaluation.usual import what_is_usual
from adadfq_jax.game import cutmix, procedural
from adadfq_jax.models.display import not_data_free
from adadfq_jax.models.network import Teacher, normalize
from adadfq_jax.reporting import (
    class_figures,
    diagnosis,
    findings,
    history,
    layer_errors,
    layer_figures,
    page,
    run_figures,
)
from adadfq_jax.reporting.allocation_figure import draw_allocation
from adadfq_jax.reporting.drawing import Drawing
from adadfq_jax.reporting.repeat import command_to_repeat
from adadfq_jax.reporting.run_facts import ReportedRun, facts_of, read_run
from adadfq_jax.training.result import Result
from adadfq_jax.training.workdir import ALLOCATION, read_json

# Pixels of the images that measure the cost of layers: each layer takes a forward pass over them.
_COST_PIXELS = 2**17
_COVERAGE_IMAGES, _COVERAGE_SEED = 512, 0
_CONFUSED_IMAGES = 2000
_PHASES = {"calibrate": "calibration", "warmup": "warm-up", "play": "play"}


def report_run(
    workdir: Path, logged: history.History, taken: Sequence[tuple[int, bytes]]
) -> tuple[str, list[findings.Finding], list[Drawing]]:
    """Measures a run's student on held-out generated images, and makes the page of its report.

    Args:
      workdir: the run's folder.
      logged: the run's log.
      taken: pictures that the run drew during training, (step, PNG).

    Returns:
      (the page, HTML; its findings; its figures).

    Raises:
      CheckpointError: there is no run, or no checkpoint that can be read.
    """
    run = read_run(workdir, logged, taken)
    facts = facts_of(run)
    found = findings.find(facts)
    sections = [
        page.verdict(findings.verdict(facts, found)),
        page.section("Findings", page.findings(found)),
    ]
    drawings = []
    for describe in (_numbers, _game, _images, _classes, _reasons, _layers):
        section, figures = describe(run, facts)
        sections.append(section)
        drawings += figures
    sections.append(_repetition(run))
    config = run.config
    bits = f"w{config['quant']['weight_bits']}a{config['quant']['activation_bits']}"
    given = run.student.given_images
    subtitle = (
        f"{run.teacher.architecture}, {bits}, method {config['game'].get('method', 'adadfq')}, "
        f"seed {config['seed']}: step {run.step} of {run.schedule.total}"
        + (f"; {not_data_free(given)}." if given else ".")
    )
    text = page.page(f"Report of {workdir.absolute().name}", subtitle, sections)
    return text, found, drawings


def _game(run: ReportedRun, facts: findings.Facts) -> tuple[str, list[Drawing]]:
    logged, schedule = run.logged, run.schedule
    drawings = [
        run_figures.progress(logged, schedule, facts.teacher_top1),
        run_figures.losses(logged, schedule),
        run_figures.h_prime(logged, schedule, *run.margin),
        run_figures.h_prime_histogram(logged, run.seen, *run.margin),
        run_figures.generalisation(logged),
        run_figures.agreement(run.seen),
    ]
    section = page.section(
        "Training",
        page.figures(drawings),
        page.paragraph(
            f"H' is scaled to the batch that it is computed in; for held-out images a batch has "
            f"{run.config['batch_size']} images, as in training."
        ),
        _times(logged, run.result),
    )
    return section, drawings


def _images(run: ReportedRun, _: findings.Facts) -> tuple[str, list[Drawing]]:
    drawings = [
        run_figures.generated(run.images, run.labels, run.teacher.mean, run.teacher.std),
        run_figures.over_time(run.taken),
    ]
    drawings = [drawing for drawing in drawings if drawing is not None]
    section = page.section(
        "Images",
        page.paragraph(
            "Held-out images, one row for each class: those that the generator makes now, and "
            "those that it made from the same noise during training."
        ),
        page.figures(drawings),
    )
    return section, drawings


def _classes(run: ReportedRun, _: findings.Facts) -> tuple[str, list[Drawing]]:
    dataset, missing = _evaluation_images(run.config)
    names = dataset and dataset.class_names
    if dataset is None:
        what = f"{len(run.images)} held-out generated images"
        given, answered = run.seen.teacher, run.seen.student
    else:
        pixels = dataset.sample(_CONFUSED_IMAGES).images(run.teacher)
        what = f"{len(pixels)} of the evaluation images"
        given, answered = (
            logits_of(network, pixels, _COVERAGE_IMAGES).argmax(1)
            for network in (run.teacher, run.student)
        )
    drawings = [
        class_figures.confusion(given, answered, run.teacher.classes, what, names),
        class_figures.per_class(run.logged.evaluations, run.schedule.warm, names),
    ]
    drawings = [drawing for drawing in drawings if drawing is not None]
    section = page.section(
        "Classes",
        page.paragraph(
            f"Where the student answers otherwise than the teacher, on {what}. {missing}".strip()
        ),
        page.figures(drawings),
    )
    return section, drawings


def _reasons(run: ReportedRun, _: findings.Facts) -> tuple[str, list[Drawing]]:
    teacher = run.teacher
    families, missing = _families(run.config, teacher, run.images)
    few = run.images[: max(_COST_PIXELS // teacher.image_size**2, 16)]
    drawings = [
        layer_figures.layer_costs(diagnosis.layer_costs(run.student, teacher, few)),
        layer_figures.coverage(
            [diagnosis.coverage(name, teacher, some) for name, some in families]
        ),
    ]
    section = page.section(
        "Why the student differs from the teacher",
        page.paragraph(
            f"The cost of a layer's bits is the share of the squared distance between the two "
            f"networks' logits, on {len(few)} held-out generated images, that disappears if only "
            "this layer has 16 bits, with the same range. The cost is negative where the student "
            "has adapted to the layer's codes. Images are similar to the teacher's training data "
            "if they cause the same statistics in its BatchNorms (a distance of 0 nats), and if "
            "the teacher is as confident of them as of real images. " + missing
        ),
        page.figures(drawings),
    )
    return section, drawings


def _layers(run: ReportedRun, _: findings.Facts) -> tuple[str, list[Drawing]]:
    drawings = [
        layer_figures.sqnr("weight", run.weights),
        layer_figures.sqnr("activation", run.activations),
        *_allocation(run.workdir),
    ]
    section = page.section(
        "Layers",
        page.paragraph(
            f"Activations are measured on {len(run.images)} held-out generated images, for each "
            "quantizer on the values in the student, so that errors of earlier layers do not "
            "count. SQNR is the energy of the values over that of their quantization error: at 6 "
            "dB the error has a quarter of the energy, at 20 dB a hundredth. Dead codes are codes "
            "that no value has."
        ),
        page.figures(drawings),
        _weight_table(run.weights),
        _activation_table(run.activations),
    )
    return section, drawings


def _allocation(workdir: Path) -> list[Drawing]:
    """Draws what the run's bit-widths were chosen from, if `adadfq allocate` chose them."""
    try:
        about = read_json(workdir / ALLOCATION)
    except ConfigError:  # a damaged file stops no report
        return []
    drawing = draw_allocation(about or {})
    return [] if drawing is None else [drawing]


def _repetition(run: ReportedRun) -> str:
    return page.section(
        "How to repeat the run",
        page.code(command_to_repeat(run.config, run.workdir, run.result and run.result.devices)),
        _versions(run.result),
        page.folded("Resolved configuration", page.code(to_json(run.config))),
    )


def _families(
    config: dict[str, Any], teacher: Teacher, generated: np.ndarray
) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Returns (name, images) for each kind of images to compare, and a sentence on missing ones."""
    count = min(len(generated), _COVERAGE_IMAGES)
    key, indices = jax.random.key(_COVERAGE_SEED), jnp.arange(count)
    drawn = procedural.draw(
        key, indices, teacher.image_size, tuple(teacher.mean), tuple(teacher.std)
    )
    cut = cutmix.cut_together(key, indices, drawn, jnp.asarray(generated[:count]), share=1.0)
    families = [
        ("generated", generated[:count]),
        ("procedural", np.asarray(drawn)),
        ("cut together", np.asarray(cut)),
    ]
    dataset, missing = _evaluation_images(config)
    if dataset is None:
        return families, missing
    pixels = jnp.asarray(dataset.sample(count).images(teacher))
    real = normalize(pixels, teacher.mean, teacher.std)
    return [*families, ("evaluation images", np.asarray(real))], ""


def _evaluation_images(config: dict[str, Any]) -> tuple[Dataset | None, str]:
    """Returns (the run's evaluation images, or None; a sentence that says why there are none)."""
    data = config["data"]
    try:
        dataset = load_dataset(data["source"], data["path"], data.get("labels"))
    except DataError as error:
        return None, f"The run's evaluation images could not be read: {error}"
    return dataset, "" if dataset else "There are no evaluation images to compare with."


def _numbers(run: ReportedRun, facts: findings.Facts) -> tuple[str, list[Drawing]]:
    best = percent(facts.best_top1)
    if facts.best_top1 is not None:
        best += f" at step {facts.best_step}"
    healthiest = "not known"
    if facts.healthiest_step is not None:
        healthiest = f"step {facts.healthiest_step}, health {facts.healthiest:.3f}"
        if facts.healthiest_top1 is not None:
            healthiest += f", top-1 {percent(facts.healthiest_top1)}"
    rows = [
        ["teacher top-1", percent(facts.teacher_top1)],
        ["calibrated only", percent(facts.calibrated_top1)],
        ["student top-1, last", percent(facts.top1)],
        ["student top-1, best (chosen on these images)", best],
        ["agreement, calibrated only", percent(facts.calibrated_agreement)],
        ["agreement, last", percent(facts.agreement)],
        ["health, last", f"{facts.health:.3f}"],
        ["healthiest student (chosen without data)", healthiest],
        ["ranges moved in the last calibration epoch", percent(facts.range_change)],
        ["procedural images from the teacher's statistics", f"{facts.statistics:.3f} nats"],
    ]
    if run.student.given_images:
        rows.append(["images of a user", f"{run.student.given_images:,}, of the student alone"])
    section = page.section(
        "Numbers",
        page.table("Results", ["number", "value"], rows),
        page.paragraph(
            "Agreement with the teacher is on held-out generated images. Health is a score "
            "from 0 to 1 that needs no data: the agreement, times the share of these images "
            "whose H' lies in AdaDFQ's margin, over 1 + their L_BNS. "
            + what_is_usual(facts.bits, facts.agreement)
        ),
    )
    return section, []


def _times(logged: history.History, result: Result | None) -> str:
    rows = [[_PHASES.get(name, name), f"{value:.0f}"] for name, value in logged.seconds.items()]
    if result is not None:
        rows.append(["whole run", f"{result.seconds:.0f}"])
    return page.table("Time", ["phase", "seconds"], rows) + page.paragraph(
        "Wall time, compiling and measuring included. The times of the phases are computed from "
        "the logged steps per second."
    )


def _weight_table(weights: list[layer_errors.QuantizedWeight]) -> str:
    rows = [
        [layer.name, str(layer.bits), f"{layer.sqnr:.1f}", f"{layer.dead} of {2**layer.bits}"]
        for layer in weights
    ]
    heading = ["layer", "bits", "SQNR in dB", "dead codes"]
    return page.table("Weights", heading, rows, stacked=False)


def _activation_table(activations: list[layer_errors.QuantizedActivation]) -> str:
    rows = [
        [
            layer.name,
            str(layer.bits),
            f"{layer.sqnr:.1f}",
            f"{layer.minimum:.3g} to {layer.maximum:.3g}",
            f"{layer.largest:.3g}",
            f"{layer.clipped:.3%}",
            f"{layer.dead} of {2**layer.bits}",
        ]
        for layer in activations
    ]
    heading = ["layer", "bits", "SQNR in dB", "range", "largest value", "clipped", "dead codes"]
    return page.table("Activations", heading, rows, stacked=False)


def _versions(result: Result | None) -> str:
    rows = [
        ["run: jax", "not known" if result is None else result.jax_version],
        ["run: devices", "not known" if result is None else result.on_devices],
        ["report: adadfq_jax", adadfq_jax.__version__],
        ["report: jax", jax.__version__],
        ["report: matplotlib", matplotlib.__version__],
        ["report: Python", platform.python_version()],
    ]
    return page.table("Versions", ["what", "version"], rows)
