"""The report of one run."""

import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import adadfq_jax
from adadfq_jax.config.identity import read_back, to_json
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import DataError
from adadfq_jax.evaluation import health
from adadfq_jax.evaluation.accuracy import percent
from adadfq_jax.evaluation.statistics import check_statistics
from adadfq_jax.game import cutmix, procedural
from adadfq_jax.game.optimizers import rate_field
from adadfq_jax.models.network import Teacher, normalize
from adadfq_jax.reporting import diagnosis, findings, history, layer_errors, page, run_figures
from adadfq_jax.reporting.drawing import Drawing
from adadfq_jax.reporting.repeat import command_to_repeat
from adadfq_jax.training.generate import generate, scoring_batch_size
from adadfq_jax.training.result import Result, read_result
from adadfq_jax.training.student import load_state, student_of
from adadfq_jax.training.workdir import CONFIG, DIVERGED, read_json

# Of the images that layers are tried on one by one: a forward pass of all for each.
_COST_PIXELS = 2**17
_COVERAGE_IMAGES, _COVERAGE_SEED = 512, 0
_PHASES = {"calibrate": "calibration", "warmup": "warm-up", "play": "play"}


def report_run(
    workdir: Path, logged: history.History, taken: Sequence[tuple[int, bytes]]
) -> tuple[str, list[findings.Finding], list[Drawing]]:
    """Measures a run's student on held-out generated images, and describes the run.

    Args:
      workdir: the run's folder.
      logged: what the run logged.
      taken: the pictures that it took on its way, (step, PNG).

    Returns:
      (the page; what it says in words; its figures).

    Raises:
      CheckpointError: there is no run, or no checkpoint that can be read.
    """
    # ---- What is there ------------------------------------------------------------------------
    game, state, teacher, step = load_state(workdir)
    config = read_json(workdir / CONFIG)
    result = read_result(workdir)

    # ---- What the student does ----------------------------------------------------------------
    student = student_of(game, state, teacher, result)
    # As the run measured it: images are made, and H' and L_BNS computed, by the batch.
    together = scoring_batch_size(teacher.image_size)
    images, labels = generate(game, state, config["evaluation"]["generated_images"])
    seen = health.score(teacher, student, images, labels, config["batch_size"], together)
    families, missing = _families(config, teacher, images)
    few = images[: max(_COST_PIXELS // teacher.image_size**2, 16)]
    costs = diagnosis.layer_costs(student, teacher, few)
    weights = layer_errors.measure_weights(student)
    activations = layer_errors.measure_activations(student, images)

    # ---- In words and pictures ----------------------------------------------------------------
    rules = config["game"]
    margin = rules.get("lambda_l"), rules.get("lambda_u")
    schedule = _schedule(config)
    facts = _facts(config, result, logged, seen, teacher, weights, activations, step, schedule)
    if (ended := read_json(workdir / DIVERGED)) is not None:
        facts = dataclasses.replace(facts, diverged=ended["message"])
    found = findings.find(facts)
    training = [
        run_figures.progress(logged, schedule, facts.teacher_top1),
        run_figures.losses(logged, schedule),
        run_figures.h_prime(logged, schedule, *margin),
        run_figures.h_prime_histogram(logged, seen, *margin),
        run_figures.generalisation(logged),
        run_figures.agreement(seen),
    ]
    pictures = [
        run_figures.generated(images, labels, teacher.mean, teacher.std),
        run_figures.over_time(taken),
    ]
    pictures = [picture for picture in pictures if picture is not None]
    errors = [run_figures.sqnr("weight", weights), run_figures.sqnr("activation", activations)]
    reasons = [
        run_figures.layer_costs(costs),
        run_figures.coverage([diagnosis.coverage(name, teacher, some) for name, some in families]),
    ]
    bits = f"w{config['quant']['weight_bits']}a{config['quant']['activation_bits']}"
    subtitle = (
        f"{teacher.architecture}, {bits}, method {rules.get('method', 'adadfq')}, seed "
        f"{config['seed']}: step {step} of {schedule.total}."
    )
    parts = [
        page.section("Findings", page.findings(found)),
        page.section(
            "Numbers",
            _numbers(facts),
            page.paragraph(
                "Agreement with the teacher is on held-out generated images. Health is a score "
                "from 0 to 1 that needs no data: the agreement, times the share of these images "
                "whose H' lies in AdaDFQ's margin, over 1 + their L_BNS."
            ),
        ),
        page.section(
            "The game",
            page.figures(training),
            page.paragraph(
                f"H' is relative to the images that it is computed with; held-out ones are taken "
                f"{config['batch_size']} at a time, as in the game."
            ),
            _times(logged, result),
        ),
        page.section(
            "Images",
            page.paragraph(
                "Held-out images, a row of each class: as the generator makes them now, and the "
                "same noise at moments of the run."
            ),
            page.figures(pictures),
        ),
        page.section(
            "Why it is not the teacher",
            page.paragraph(
                f"The cost of a layer's bits is the share of the squared distance between the two "
                f"networks' logits, on {len(few)} held-out generated images, that goes away when "
                "this layer alone has 16 bits in the same range; it is negative where the student "
                "has adapted to the layer's codes. Images cover what the network "
                "was trained for as far as the statistics that they cause in the teacher are those "
                "of its training data (0 nats), and as it is as sure of them as of real ones. "
                + missing
            ),
            page.figures(reasons),
        ),
        page.section(
            "Layers",
            page.paragraph(
                f"Activations are measured on {len(images)} held-out generated images, each "
                "quantizer by itself on the student's own values. SQNR is the energy of the values "
                "over that of the error; 6 dB are a quarter, 20 dB a hundredth. Dead codes are "
                "those that no value has."
            ),
            page.figures(errors),
            _weight_table(weights),
            _activation_table(activations),
        ),
        page.section(
            "To repeat it",
            page.code(command_to_repeat(config, workdir)),
            _versions(result),
            page.folded("Resolved configuration", page.code(to_json(config))),
        ),
    ]
    text = page.page(f"Report of {workdir.absolute().name}", subtitle, parts)
    return text, found, [*training, *pictures, *reasons, *errors]


def _families(
    config: dict[str, Any], teacher: Teacher, generated: np.ndarray
) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Returns images to compare by the name of their family, and what is missing, in words."""
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
    data = config["data"]
    try:
        dataset = load_dataset(data["source"], data["path"], data.get("labels"))
    except DataError as error:
        return families, f"The run's evaluation images could not be read: {error}"
    if dataset is None:
        return families, "There are no evaluation images to compare with."
    pixels = jnp.asarray(dataset.sample(count).images(teacher.image_size))
    real = normalize(pixels, teacher.mean, teacher.std)
    return [*families, ("evaluation images", np.asarray(real))], ""


def _schedule(config: dict[str, Any]) -> run_figures.Schedule:
    epoch = config["steps_per_epoch"]
    return run_figures.Schedule(
        calibrated=config["calibration_epochs"] * epoch,
        warm=config["warmup_epochs"] * epoch,
        total=config["epochs"] * epoch,
    )


def _facts(
    config, result, logged, seen, teacher, weights, activations, step, schedule
) -> findings.Facts:
    """Gathers the numbers; the log is asked first, since an unfinished run has no result."""
    # A checkpoint that was damaged may leave the log ahead of the student.
    evaluations = [record for record in logged.evaluations if record["step"] <= step]
    calibrated = next((one for one in evaluations if one["step"] == schedule.warm), {})
    last = evaluations[-1] if evaluations else {}
    best = max(
        (one for one in evaluations if one["top1"] is not None),
        key=lambda one: one["top1"],
        default={},
    )
    healthiest = max(
        (one for one in evaluations if one["health"] is not None),
        key=lambda one: one["health"],
        default={},
    )
    played = step > schedule.warm
    full = read_back(config)
    adam = full.student.optimizer == "adam"
    return findings.Facts(
        steps=step,
        total_steps=schedule.total,
        diverged=None,
        not_finite=logged.not_finite,
        calibration_epochs=config["calibration_epochs"],
        warmup_epochs=config["warmup_epochs"],
        epochs=config["epochs"],
        student_milestones=() if adam else full.student.milestones,
        student_rate=rate_field(full.student),
        clips_on_purpose=full.quant.learned_ranges or full.quant.ranges != "minmax",
        range_change=result and result.range_change,
        lambda_l=config["game"].get("lambda_l"),
        lambda_u=config["game"].get("lambda_u"),
        h_prime=seen.h_prime.tolist(),
        agreement=seen.agreement,
        calibrated_agreement=calibrated.get("agreement") if played else None,
        teacher_top1=result and result.teacher_top1,
        calibrated_top1=calibrated.get("top1") if played else None,
        top1=last.get("top1"),
        best_top1=best.get("top1"),
        best_step=best.get("step"),
        health=seen.health,
        healthiest=healthiest.get("health"),
        healthiest_step=healthiest.get("step"),
        healthiest_top1=healthiest.get("top1"),
        statistics=check_statistics(teacher).distance,
        weights=weights,
        activations=activations,
    )


def _numbers(facts: findings.Facts) -> str:
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
    return page.table("Results", ["number", "value"], rows)


def _times(logged: history.History, result: Result | None) -> str:
    rows = [[_PHASES.get(name, name), f"{value:.0f}"] for name, value in logged.seconds.items()]
    if result is not None:
        rows.append(["whole run", f"{result.seconds:.0f}"])
    return page.table("Time", ["phase", "seconds"], rows) + page.paragraph(
        "Wall time, compiling and measuring included; of the phases as the logged rates of steps "
        "tell it."
    )


def _weight_table(weights: list[layer_errors.QuantizedWeight]) -> str:
    rows = [
        [layer.name, str(layer.bits), f"{layer.sqnr:.1f}", f"{layer.dead} of {2**layer.bits}"]
        for layer in weights
    ]
    return page.table("Weights", ["layer", "bits", "SQNR in dB", "dead codes"], rows)


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
    return page.table("Activations", heading, rows)


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
