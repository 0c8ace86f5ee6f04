"""Reports of two short runs, with and without evaluation images; rules by table."""

import base64
import dataclasses
import functools
import html.parser
import io
import itertools
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import flax.linen
import jax
import numpy as np
import pytest
from PIL import Image

from adadfq_jax.cli import main
from adadfq_jax.config.bits_file import write_bits
from adadfq_jax.config.identity import to_json
from adadfq_jax.models.network import Network
from adadfq_jax.reporting import (
    class_figures,
    diagnosis,
    history,
    layer_errors,
    layer_figures,
    sweep_figures,
    write,
)
from adadfq_jax.reporting.diagnosis import LayerCost
from adadfq_jax.reporting.findings import GOOD, NOTE, PROBLEM, Facts, find, verdict
from adadfq_jax.reporting.layer_errors import QuantizedActivation, QuantizedWeight
from adadfq_jax.sweeps.grid import plan
from adadfq_jax.sweeps.table import table_rows
from adadfq_jax.training import quantize
from adadfq_jax.training.student import load_student
from tests import ROOT
from tests.conftest import SIZE, make_result, make_small_config, make_teacher

FIGURES = {
    "progress",
    "losses",
    "h_prime",
    "h_prime_histogram",
    "generalisation",
    "agreement",
    "samples",
    "samples_over_time",
    "weight_sqnr",
    "activation_sqnr",
    "layer_costs",
    "coverage",
    "confusion",
}
# Of a run with evaluation images, and with bit-widths from a file of `adadfq allocate`.
MEASURED_FIGURES = FIGURES | {"per_class", "allocation"}
ALLOCATION = {
    "measure": "size",
    "level": 2.9,
    "distance": 0.1,
    "curve": [(2.5, 0.2), (2.9, 0.1), (3.9, 0.03)],
    "uniform": {2: (2, 0.5), 3: (3, 0.15)},
}
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs by name, without their reports."""
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    np.savez(folder / "test.npz", x=images, y=np.arange(40) % 10)
    for name in ("with", "without"):
        config = make_small_config()
        config.checkpoint.every_steps, config.evaluation.batch_size = 6, 16
        if name == "with":
            config.data.source, config.data.path = "npz", str(folder / "test.npz")
            bits = folder / "bits.json"
            write_bits(bits, make_teacher(), [], sums=False, about=ALLOCATION)
            config.quant.overrides = (f"@{bits}",)
        quantize.quantize(config, make_teacher(), folder / name, show_progress=False)
    return folder


@pytest.fixture(scope="module")
def reported(runs, tmp_path_factory):
    """Both runs with their reports; not to be changed."""
    folder = tmp_path_factory.mktemp("reported")
    for name in ("with", "without"):
        shutil.copytree(runs / name, folder / name)
        assert main.run(["report", f"--workdir={folder / name}", "--cache="]) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path):
    """A run without evaluation images, to be changed."""
    return Path(shutil.copytree(runs / "without", tmp_path / "run"))


class Page(html.parser.HTMLParser):
    """What a page shows.

    Attributes:
      images: by the figure's id, (alt, PNG).
      rows: cells of the rows of its tables.
      found: (level, text) of its findings.
      code: texts of its code blocks.
      references: all that it leads to or loads.
    """

    def __init__(self, path):
        super().__init__()
        self.images, self.rows, self.found, self.code, self.references = {}, [], [], [], []
        self._figure, self._into = None, None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.references += [attributes[name] for name in ("src", "href") if name in attributes]
        match tag:
            case "figure":
                self._figure = attributes["id"]
            case "img":
                png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
                self.images[self._figure] = attributes["alt"], png
            case "tr":
                self.rows.append([])
            case "td" | "th":
                self.rows[-1].append("")
                self._into = lambda text: self.rows[-1].append(self.rows[-1].pop() + text)
            case "li":
                self.found.append((attributes["class"], ""))
                self._into = lambda text: self.found.append(
                    (self.found[-1][0], self.found.pop()[1] + text)
                )
            case "pre":
                self._into = self.code.append

    def handle_endtag(self, tag):
        if tag in ("td", "th", "li", "pre"):
            self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into(data)

    def table(self):
        """Returns the rows' cells by their first one."""
        return {first: others for first, *others in self.rows}


# ---- What the page shows ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with", "without"])
def test_every_figure_is_on_the_page_and_beside_it(reported, name):
    path = reported / name / "report.html"
    page = Page(path)
    figures = MEASURED_FIGURES if name == "with" else FIGURES
    assert set(page.images) == figures
    assert {file.name for file in (reported / name / "report").iterdir()} == {
        f"{figure}.png" for figure in figures
    }
    for figure, (alt, png) in page.images.items():
        assert len(alt.split()) > 5
        assert png == (reported / name / "report" / f"{figure}.png").read_bytes()
        picture = Image.open(io.BytesIO(png))
        picture.load()
        colours = picture.convert("RGB").getcolors(maxcolors=2**24)
        assert len(colours) > 20
    assert path.stat().st_size < 5e6


@pytest.mark.parametrize("name", ["with", "without"])
def test_the_page_needs_no_network(reported, name):
    path = reported / name / "report.html"
    assert not re.search(r"https?://|<script|<link|@import|url\(", path.read_text())
    assert all(reference.startswith("data:") for reference in Page(path).references)


def test_numbers_are_those_of_the_run(reported):
    result = json.loads((reported / "with" / "result.json").read_text())
    shown = Page(reported / "with" / "report.html").table()
    for row, name in (
        ("teacher top-1", "teacher_top1"),
        ("calibrated only", "calibrated_top1"),
        ("student top-1, last", "top1"),
        ("agreement, calibrated only", "calibrated_agreement"),
        ("agreement, last", "agreement"),
    ):
        assert shown[row] == [f"{result[name]:.2%}"], row
    best = f"{result['best_top1']:.2%} at step {result['best_step']}"
    assert shown["student top-1, best (chosen on these images)"] == [best]
    # The run measures by batches of its own; these are not those that `draw` makes.
    assert (
        json.loads((reported / "with" / "config.json").read_text())["evaluation"]["batch_size"] < 40
    )
    assert shown["health, last"] == [f"{result['health']:.3f}"]
    healthiest = shown["healthiest student (chosen without data)"][0]
    assert healthiest.startswith(f"step {result['healthiest_step']}, ")
    assert healthiest.endswith(f"top-1 {result['healthiest_top1']:.2%}")
    assert set(shown) >= {"stem_conv", "stage3_block1/relu2", "classifier", "play", "warm-up"}


def test_classes_are_those_of_the_run(reported, runs):
    records = [
        json.loads(line) for line in (reported / "with" / "metrics.jsonl").read_text().splitlines()
    ]
    measured = [record["class_top1"] for record in records if "evaluation" in record]
    images = np.full(10, 4)  # of each class
    for record, shares in zip((r for r in records if "evaluation" in r), measured, strict=True):
        assert np.average(shares, weights=images) == pytest.approx(record["top1"])
    alt, _ = Page(reported / "with" / "report.html").images["per_class"]
    assert f"the lowest is {np.argmin(measured[-1])} with {100 * min(measured[-1]):.1f}" in alt
    student = load_student(reported / "with")
    test = np.load(runs / "test.npz")["x"]
    differ = int((np.argmax(student(test), 1) != np.argmax(student.teacher(test), 1)).sum())
    alt, _ = Page(reported / "with" / "report.html").images["confusion"]
    assert alt.startswith(f"Teacher and student give {differ} of 40 of the evaluation images diff")
    alt, _ = Page(reported / "without" / "report.html").images["confusion"]
    assert "of 40 held-out generated images" in alt


@pytest.mark.parametrize("name", ["with", "without"])
def test_the_verdict_comes_first_and_long_tables_alone_scroll(reported, name):
    text = (reported / name / "report.html").read_text()
    body = text.partition("</style>")[2]
    assert body.index('class="verdict') < body.index("<h2>Findings")
    assert body.count("<table>") == 2  # weights and activations
    assert body.count('<table class="stacked">') >= 3


def test_without_evaluation_images_all_but_accuracy_is_there(reported):
    page = Page(reported / "without" / "report.html")
    shown = page.table()
    for row in ("teacher top-1", "calibrated only", "student top-1, last"):
        assert shown[row] == ["not measured"]
    assert any("Accuracy is not measured" in text for _, text in page.found)
    assert "accuracy not measured" in (reported / "without" / "report.html").read_text()
    other = Page(reported / "with" / "report.html")
    assert not any("not measured" in text for _, text in other.found)
    # The same game: the same layers, images and agreement.
    assert page.images["samples"] == other.images["samples"]
    assert shown["stem_relu"] == other.table()["stem_relu"]


def test_the_command_plays_the_same_game(reported, monkeypatch, capfd):
    page = Page(reported / "with" / "report.html")
    adadfq, *words = shlex.split(page.code[0])
    assert adadfq == "adadfq"
    workdir = f"--workdir={reported / 'with'}"
    assert f"{workdir}_again" in words
    monkeypatch.chdir(ROOT)
    before = (reported / "with" / "result.json").read_bytes()
    # A workdir refuses another game, and a finished one is only read.
    assert main.run([*words, workdir, "--cache="]) == 0
    assert "already complete" in "".join(capfd.readouterr())
    assert (reported / "with" / "result.json").read_bytes() == before


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
@pytest.mark.parametrize("what", ["run", "sweep"])
def test_a_browser_shows_it_without_overflow(reported, tmp_path, width, what):
    if what == "run":
        text, figures = (reported / "with" / "report.html").read_text(), len(MEASURED_FIGURES)
    else:
        figures = len(make_sweep(tmp_path, "bits=w3a3,w4a4;seed=0..1").images)
        text = (tmp_path / "report.html").read_text()
    tell = """<script>addEventListener("load", () => parent.postMessage([
      document.documentElement.scrollWidth,
      [...document.images].filter(image => image.naturalWidth > 0).length,
      Math.max(...[...document.images].map(image => image.width))], "*"))</script></body>"""
    (tmp_path / "page.html").write_text(text.replace("</body>", tell))
    # A frame is as narrow as it is told, which a headless window is not.
    (tmp_path / "frame.html").write_text(
        """<body><script>addEventListener("message", event => {
        document.body.dataset.told = event.data.join(" "); })</script>"""
        f'<iframe src="page.html" width="{width}" height="800" style="border: 0"></iframe>'
    )
    finished = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--enable-logging=stderr",
            "--dump-dom",
            f"file://{tmp_path / 'frame.html'}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = re.search(r'data-told="(\d+) (\d+) (\d+)"', finished.stdout)
    assert told, finished.stderr[-2000:]
    scroll_width, images, widest = map(int, told.groups())
    assert scroll_width <= width
    assert images == figures
    assert 200 < widest < width
    assert "CONSOLE" not in finished.stderr


# ---- What it is measured by -------------------------------------------------------------------


def test_activations_are_measured_as_by_hand(runs):
    student = load_student(runs / "with")
    images, _ = student.draw(100)  # more than one batch, and a rest
    (measured,) = [
        layer
        for layer in layer_errors.measure_activations(student, images)
        if layer.name == "stem_relu"
    ]
    _, seen = student.module.apply(
        student.variables, images, capture_intermediates=True, mutable=["intermediates"]
    )
    seen = seen["intermediates"]
    x = np.maximum(np.asarray(seen["stem_norm"]["__call__"][0], np.float64), 0)
    y = np.asarray(seen["stem_relu"]["__call__"][0], np.float64)
    ranges = student.variables["ranges"]["stem_relu"]
    assert measured.bits == 4
    assert measured.minimum == float(ranges["minimum"])
    assert measured.maximum == float(ranges["maximum"])
    assert measured.largest == pytest.approx(x.max(), rel=1e-5)
    assert measured.sqnr == pytest.approx(
        10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-3
    )
    outside = (x < measured.minimum) | (x > measured.maximum)
    assert measured.clipped == pytest.approx(outside.mean(), abs=2 / x.size)
    assert measured.dead == 16 - len(np.unique(y.round(5)))


def test_dead_codes_and_clipping_of_a_wrong_range(runs):
    student = load_student(runs / "with")
    images, _ = student.draw(40)
    usual = layer_errors.measure_activations(student, images)[0]
    for factor, sees in (
        (100.0, lambda layer: layer.dead >= 14 and layer.clipped <= usual.clipped),
        (0.1, lambda layer: layer.clipped > 0.1 and layer.dead == 0),
    ):
        ranges = dict(student.variables["ranges"])
        ranges["stem_relu"] = ranges["stem_relu"] | {"maximum": np.float32(usual.maximum * factor)}
        changed = Network(
            architecture=student.architecture,
            module=student.module,
            variables=student.variables | {"ranges": ranges},
            image_size=student.image_size,
            mean=student.mean,
            std=student.std,
        )
        layer = layer_errors.measure_activations(changed, images)[0]
        assert layer.name == "stem_relu"
        assert sees(layer)
        assert layer.sqnr < usual.sqnr


def test_the_bits_of_one_layer_cost_all_where_the_others_have_many(runs):
    student = load_student(runs / "with")
    images, _ = student.draw(16)
    bits = jax.tree.map(lambda leaf: np.int32(12), student.variables["bits"])
    bits["stage1_block1"]["relu1"]["activation"] = np.int32(1)
    bits["stage3_block1"]["conv2"]["weight"] = np.int32(8)
    # The teacher's weights, so that quantization is all that is between them.
    changed = {"bits": bits, "params": student.teacher.variables["params"]}
    changed = dataclasses.replace(student, variables=student.variables | changed)
    costs = diagnosis.layer_costs(changed, student.teacher, images)
    found = {(layer.name, layer.kind): layer for layer in costs}
    assert len(found) == len(jax.tree.leaves(bits))
    assert [layer.name for layer in costs][:2] == ["stem_conv", "stem_relu"]
    assert found["stage1_block1/relu1", "activation"].bits == 1
    assert found["stage1_block1/relu1", "activation"].cost > 0.9
    others = [layer.cost for layer in costs if layer.bits != 1]
    assert np.abs(others).max() < 0.05


def test_images_cover_the_statistics_that_are_theirs(runs):
    """The teacher's are made those of the images; then those of one layer are moved."""
    teacher = load_student(runs / "with").teacher
    images = np.random.default_rng(0).normal(size=(128, SIZE, SIZE, 3)).astype(np.float32)
    module = teacher.module.clone(
        norm=functools.partial(flax.linen.BatchNorm, use_running_average=False, momentum=0.0)
    )
    _, written = module.apply(teacher.variables, images, mutable=["batch_stats"])
    settled = dataclasses.replace(teacher, variables=teacher.variables | written)
    seen = diagnosis.coverage("own", settled, images)
    assert seen.confidence.shape == (128,)
    assert 0.1 <= seen.classes <= 1
    assert seen.distances.shape == (7,)
    assert np.abs(seen.distances).max() < 1e-4
    assert diagnosis.coverage("others", settled, 2 * images).distances.min() > 1e-2

    # Of normal distributions: half the squared shift in standard deviations.
    last = settled.variables["batch_stats"]["stage3_block1"]["norm2"]
    moved = {**last, "mean": last["mean"] + 0.3 * np.sqrt(last["var"])}
    statistics = dict(settled.variables["batch_stats"])
    statistics["stage3_block1"] = {**statistics["stage3_block1"], "norm2": moved}
    shifted = dataclasses.replace(
        settled, variables=settled.variables | {"batch_stats": statistics}
    )
    distances = diagnosis.coverage("own", shifted, images).distances
    np.testing.assert_allclose(distances[-1], 0.045, rtol=1e-2)
    assert np.abs(distances[:-1]).max() < 1e-4


def test_evaluation_images_that_are_gone_are_named(run):
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"], config["data"]["path"] = "npz", "nowhere.npz"
    (run / "config.json").write_text(json.dumps(config))
    assert main.run(["report", f"--workdir={run}", "--cache="]) == 0
    text = (run / "report.html").read_text()
    assert "evaluation images could not be read: " in text
    assert "nowhere.npz" in text


def test_weights_are_measured_as_by_hand(runs):
    student = load_student(runs / "with")
    measured = {layer.name: layer for layer in layer_errors.measure_weights(student)}
    kernel = np.asarray(student.variables["params"]["stem_conv"]["kernel"], np.float64)
    low, high = kernel.min((0, 1, 2)), kernel.max((0, 1, 2))
    step = (high - low) / 15
    error = (
        kernel
        - (np.round(kernel / step - np.round(low / step)).clip(0, 15) + np.round(low / step)) * step
    )
    expected = 10 * np.log10((kernel**2).sum() / (error**2).sum())
    assert measured["stem_conv"].sqnr == pytest.approx(expected, abs=0.01)
    assert measured["stem_conv"].bits == 4
    assert measured["stem_conv"].dead == 0
    first, *_, last = measured
    assert (first, last) == ("stem_conv", "classifier")


# ---- What it says in words --------------------------------------------------------------------

WEIGHTS = [QuantizedWeight("conv", 4, 18.0, 0)]


def activation(**changes):
    fields = {
        "name": "relu",
        "bits": 4,
        "minimum": 0.0,
        "maximum": 4.0,
        "largest": 4.5,
        "sqnr": 17.0,
        "clipped": 0.0001,
        "dead": 0,
    }
    return QuantizedActivation(**fields | changes)


def facts(**changes):
    fields = {
        "bits": "w7a7",  # of which no run was measured
        "steps": 1000,
        "total_steps": 1000,
        "diverged": None,
        "not_finite": {},
        "calibration_epochs": 4,
        "warmup_epochs": 4,
        "epochs": 20,
        "student_milestones": (10, 15),
        "student_rate": "student.learning_rate",
        "clips_on_purpose": False,
        "range_change": 0.002,
        "lambda_l": 0.1,
        "lambda_u": 0.8,
        "h_prime": [0.05, 0.4, 0.5, 0.6, 0.7],
        "agreement": 0.8,
        "calibrated_agreement": 0.6,
        "played": [(500, 0.7), (1000, 0.8)],
        "teacher_top1": 0.93,
        "calibrated_top1": 0.8,
        "top1": 0.91,
        "best_top1": 0.915,
        "best_step": 900,
        "health": 0.4,
        "healthiest": 0.43,
        "healthiest_step": 800,
        "healthiest_top1": 0.912,
        "statistics": 0.05,
        "weights": WEIGHTS,
        "activations": [activation()],
    }
    return Facts(**fields | changes)


# Accuracy that was lost, and accuracy that nobody measured.
LOST = {"top1": 0.85, "best_top1": 0.85, "healthiest_top1": 0.85}
UNKNOWN = {
    "top1": None,
    "calibrated_top1": None,
    "best_top1": None,
    "teacher_top1": None,
    "healthiest_top1": None,
}

DRIFTED = [(200, 0.8), (400, 0.6), (600, 0.58), (800, 0.55)]


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"steps": 600}, PROBLEM, "not finished: the newest checkpoint is of step 600 of 1000"),
        ({"steps": 6, "diverged": "the game diverged: l_q"}, PROBLEM, "The game diverged: l_q"),
        ({"not_finite": {"l_q": 70, "l_g": 50}}, PROBLEM, "l_g, l_q not finite, first at step 50"),
        (
            {"statistics": 0.2},
            NOTE,
            "as another network than it is, unless 93.00% is its known accuracy: procedural images",
        ),
        ({"statistics": 0.2, **UNKNOWN}, PROBLEM, "may have been read as another network"),
        ({"range_change": 0.12}, PROBLEM, "moved by 12% in the last calibration epoch: calibrate"),
        ({"range_change": None, "calibration_epochs": 1}, NOTE, "One epoch of calibration does"),
        ({"activations": [activation(clipped=0.031)]}, NOTE, "reach further than those of calib"),
        ({"activations": [activation(clipped=0.2)], **LOST}, PROBLEM, "reach further than those"),
        (
            {"activations": [activation(clipped=0.031)], "range_change": 0.2, **LOST},
            PROBLEM,
            "1 of 1 activations clip more than 1% of their values, relu most (3.1%): calibrate",
        ),
        (
            {"not_finite": {"l_q": 7}, "student_rate": "student.relative_rate"},
            PROBLEM,
            "lower generator.learning_rate or student.relative_rate",
        ),
        ({"h_prime": [0.0, 0.05, 0.5]}, NOTE, "below lambda_l = 0.1 for 67%"),
        ({"h_prime": [0.0, 0.05, 0.5], **LOST}, PROBLEM, "below lambda_l = 0.1 for 67%"),
        ({"h_prime": [0.9, 0.85, 0.5]}, NOTE, "above lambda_u = 0.8 for 67%"),
        ({"h_prime": [0.9, 0.85, 0.5], **LOST}, PROBLEM, "above lambda_u = 0.8 for 67%"),
        ({"h_prime": [0.9, 0.85], **LOST, "agreement": 0.97}, NOTE, "above lambda_u = 0.8 for 100"),
        ({"h_prime": [float("nan"), 0.5]}, PROBLEM, "H' of 1 of 2 held-out images is not finite"),
        ({"h_prime": [float("nan")]}, PROBLEM, "H' of 1 of 1 held-out images is not finite"),
        *(
            (
                {"lambda_l": lower, "lambda_u": upper, "h_prime": [0.97, 0.95]},
                NOTE,
                "Mean H' of held-out images is 0.96",
            )
            for lower, upper in ((None, None), (0.0, 1.0), (0.45, 0.45))
        ),
        ({"student_milestones": (2, 4, 9)}, PROBLEM, "had fallen at 2 of its 3 milestones"),
        (
            {"agreement": 0.341},
            NOTE,
            "agree on only 34.1% of the held-out images: these are harder",
        ),
        ({"agreement": 0.341, **LOST}, PROBLEM, "34.1% of the held-out images: train"),
        ({"agreement": 0.341, **UNKNOWN}, PROBLEM, "agree on only 34.1%"),
        (
            {"agreement": 0.55, **UNKNOWN},
            NOTE,
            "did not raise the agreement on generated images: 60.0%",
        ),
        (UNKNOWN, NOTE, "Accuracy is not measured"),
        (
            {"played": DRIFTED, "top1": 0.85, "healthiest_top1": 0.85},
            PROBLEM,
            "is drifting; the healthiest checkpoint is of step 800 (--checkpoint=best).",
        ),
        ({"played": DRIFTED, **UNKNOWN}, PROBLEM, "has fallen for 3 evaluations, by 25.0 points"),
        ({"played": DRIFTED}, NOTE, "(--checkpoint=best). Top-1 has not fallen with it"),
        ({"played": [*DRIFTED, (900, 0.8)]}, NOTE, "was drifting at step 800 (agreement 55.0%"),
        ({"top1": 0.795, "best_top1": 0.795}, NOTE, "to 79.50%, no gain that these images"),
        ({"top1": 0.7, "best_top1": 0.7}, PROBLEM, "(calibrated only) to 70.00%, so training"),
        ({"top1": 0.85, "best_top1": 0.85}, NOTE, "8.0 points below the teacher's 93.00%"),
        ({"healthiest": 0.5}, NOTE, "healthier at step 800 (0.500, now 0.400): --checkpoint=best"),
        ({"best_top1": 0.93}, NOTE, "fell from 93.00% at step 900 to 91.00%"),
        ({"activations": [activation(largest=0.0)]}, PROBLEM, "Always 0 on held-out images: relu"),
        ({"activations": [activation(dead=2)]}, NOTE, "relu most (2 of 16)"),
        ({"activations": [activation(dead=9)], **LOST}, PROBLEM, "relu most (9 of 16)"),
        ({"activations": [activation(sqnr=4.2)]}, NOTE, "relu most (4.2 dB, 4 bit)"),
        ({"weights": [QuantizedWeight("conv", 2, 5.5, 0)]}, NOTE, "conv most (5.5 dB, 2 bit)"),
    ],
)
def test_a_rule_speaks_when_it_should(changes, level, words):
    found = find(facts(**changes))
    (spoken,) = [finding for finding in found if words in finding.text]
    assert spoken.level == level
    # And not otherwise; the worst comes first.
    assert not any(words in finding.text for finding in find(facts()))
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=(PROBLEM, NOTE, GOOD).index)
    assert any("Nothing else" in one.text for one in found) == (PROBLEM not in levels)


def test_the_healthiest_student_is_named_once():
    found = find(facts(played=DRIFTED, healthiest=0.6))
    assert sum("--checkpoint=best" in finding.text for finding in found) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        # The built-in example: settled ranges, 97 % of 99 %, and a layer that clips a little.
        ({"activations": [activation(clipped=0.014)]}, "calibrate longer"),
        ({"agreement": 0.55, "calibrated_agreement": 0.6}, "did not raise"),
        ({"healthiest": 0.6, "healthiest_top1": 0.8}, "healthier"),
        ({"top1": 0.85, "best_top1": 0.88}, "longer training"),
        ({"agreement": 0.3}, "train longer"),
        ({"h_prime": [0.9, 0.95]}, "too easy"),
    ],
)
def test_advice_does_not_contradict_what_is_known(changes, words):
    found = find(facts(**changes))
    assert not any(words in finding.text for finding in found)
    assert PROBLEM not in {finding.level for finding in found}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"diverged": "the game diverged: l_q"}, PROBLEM, "its student is of no use"),
        ({"steps": 600}, PROBLEM, "not finished: 600 of 1000 steps"),
        ({}, NOTE, "right on 91.00% of the images, the teacher on 93.00%: 2.0 points are lost."),
        (
            {"best_top1": 0.925},
            NOTE,
            "at step 900 it was better, with 92.50%: 2.0 points are lost.",
        ),
        ({"top1": 0.85, "best_top1": 0.85}, PROBLEM, "on 93.00%: 8.0 points are lost."),
        ({"teacher_top1": None}, NOTE, "right on 91.00% of the evaluation images."),
        (UNKNOWN, NOTE, "nothing speaks against the student: it agrees with the teacher on 80.0% "),
        ({**UNKNOWN, "bits": "w4a4"}, NOTE, "80.0% of the generated images, as usual at w4a4."),
        ({**UNKNOWN, "agreement": 0.341}, PROBLEM, "not known, and a problem was found"),
    ],
)
def test_the_verdict_is_one_sentence(changes, level, words):
    given = facts(**changes)
    said = verdict(given, find(given))
    assert said.level == level
    assert words in said.text
    assert said.text.count(". ") == 0


def test_usual_agreement_is_no_problem():
    """What nobody can know without images is not held against a student that is like others."""
    hard = {**UNKNOWN, "h_prime": [0.0, 0.05, 0.5], "agreement": 0.8}
    assert PROBLEM in {finding.level for finding in find(facts(**hard))}
    found = find(facts(**hard, bits="w4a4"))
    assert PROBLEM not in {finding.level for finding in found}
    assert any("is usual at w4a4" in finding.text for finding in found)
    low = find(facts(**hard | {"agreement": 0.2}, bits="w4a4"))
    assert any("agree on only 20.0%" in finding.text for finding in low)


def test_a_confusion_names_what_is_confused():
    teacher, student = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 0, 2])
    drawing = class_figures.confusion(teacher, student, 3, "6 images", ("ant", "bee", "cat"))
    assert drawing.alt == (
        "Teacher and student give 3 of 6 images different classes, most often cat by the teacher "
        "and ant by the student (2 images)."
    )
    teacher = np.arange(100)
    student = np.where(teacher == 70, 71, teacher)
    alt = class_figures.confusion(teacher, student, 100, "100 images").alt
    assert "most often 70 by the teacher and 71 by the student (1 images); shown are the 16" in alt


def test_classes_that_changed_most_are_shown():
    after = [0.5] * 40
    after[7], after[9] = 1.0, None
    records = [{"step": 6, "class_top1": [0.5] * 40}, {"step": 12, "class_top1": after}]
    alt = class_figures.per_class(records, 6).alt
    assert "7 gained most, from 50.0 to 100.0 percent; shown are the 16 classes of 40" in alt
    assert class_figures.per_class([{"step": 6, "class_top1": None}], 6) is None
    assert "gained" not in class_figures.per_class(records[1:], 6).alt


def test_a_long_negative_bar_leaves_room_for_the_others(monkeypatch):
    costs = [LayerCost("a", "weight", 4, -0.7), LayerCost("b", "activation", 4, 0.04)]
    figures = []

    def keep(*described):
        figures.append(described[-1])
        return drawn(*described)

    drawn = layer_figures.drawn
    monkeypatch.setattr(layer_figures, "drawn", keep)
    layer_figures.layer_costs(costs)
    (axes,) = figures[0].axes
    assert axes.get_xlim()[0] > -10
    assert "-70 %" in " ".join(text.get_text() for text in axes.texts)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"range_change": 0.05},
        {"activations": [activation(clipped=0.01, dead=1, sqnr=6.0)]},
        {"activations": [activation(bits=8, dead=25)]},
        {"agreement": 0.61, "teacher_top1": 0.96, "top1": 0.912, "best_top1": 0.92},
        {"epochs": 4, "student_milestones": (2,)},
        {"lambda_l": None, "lambda_u": None, "h_prime": [0.9]},
        {"lambda_l": 0.45, "lambda_u": 0.45, "h_prime": [0.1, 0.9]},
        {"weights": [QuantizedWeight("conv", 8, float("inf"), 200)]},
    ],
)
def test_a_healthy_run_is_called_so(changes):
    found = find(facts(**changes))
    assert {finding.level for finding in found} == {GOOD}
    assert found[-1].text.startswith("Nothing else was found wrong")


# ---- Damaged, unfinished, refused -------------------------------------------------------------


def test_metrics_that_are_not_finite_or_cut_short(run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    evaluations = [record for record in records if "evaluation" in record]
    evaluations[0]["health"] = evaluations[-1]["top1"] = float("nan")
    trained = [record for record in records if "l_g" in record]
    trained[4]["l_g"] = float("nan")
    trained[5]["l_q"] = float("-inf")
    for record in trained:
        record["l_bns"] = float("nan")
        record["steps_per_second"] = 0.0
    text = "\n".join(map(json.dumps, records))
    assert "NaN" in text
    assert "-Infinity" in text
    path.write_text(f'[1]\n{{"phase": "play"}}\n{text}\n{{"step": 99, "l_')
    found = write.write_report(run)
    words = f"health, l_bns, l_g, l_q, top1 not finite, first at step {trained[0]['step']}"
    assert [one.level for one in found if words in one.text] == [PROBLEM]
    page = Page(run / "report.html")
    assert set(page.images) == FIGURES
    assert "L_BNS, statistics: never finite." in page.images["losses"][0]
    assert "play" not in page.table()


def test_a_damaged_picture_or_allocation_is_passed_over(run):
    (run / "allocation.json").write_text("{")
    pictures = sorted((run / "samples").iterdir())
    pictures[1].write_bytes(pictures[1].read_bytes()[:200])
    (run / "samples" / "mine.png").write_bytes(pictures[0].read_bytes())
    write.write_report(run)
    images = Page(run / "report.html").images
    assert "allocation" not in images
    alt, _ = images["samples_over_time"]
    assert "after steps 3, 9, 12," in alt
    (file,) = (run / "tensorboard").iterdir()
    events = _events(file.read_bytes())
    tags = [(value.tag, event.step) for event in events for value in event.summary.value]
    assert [step for tag, step in tags if tag == "generated"] == [3, 9, 12]


def test_a_run_without_metrics(run):
    (run / "metrics.jsonl").unlink()
    write.write_report(run)
    page = Page(run / "report.html")
    assert page.images["losses"][0] == "No loss was logged."
    assert page.images["progress"][0] == "No evaluation was logged."


def test_seconds_by_phase(tmp_path):
    records = [
        {"step": 10, "phase": "calibrate", "steps_per_second": 5.0, "l_g": 1.0},
        {"step": 20, "phase": "calibrate", "steps_per_second": 10.0, "l_g": 1.0},
        {"step": 20, "evaluation": True, "top1": 0.5, "top5": None, "agreement": 0.25},
        {"step": 40, "phase": "play", "steps_per_second": 2.0, "l_g": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    read = history.read_history(tmp_path)
    assert read.seconds == {"calibrate": 3.0, "play": 10.0}
    (evaluation,) = read.evaluations
    measured = {name: value for name, value in evaluation.items() if value is not None}
    assert measured == {"step": 20, "top1": 0.5, "agreement": 0.25}
    assert set(read.curves) == {"l_g"}


def test_a_run_that_is_not_finished(run):
    newest, before = sorted(map(int, os.listdir(run / "checkpoints")), reverse=True)[:2]
    assert newest == 12
    shutil.rmtree(run / "checkpoints" / "12")
    (run / "result.json").unlink()
    found = write.write_report(run)
    assert f"the newest checkpoint is of step {before} of 12" in found[0].text
    assert set(Page(run / "report.html").images) == FIGURES
    (run / "diverged.json").write_text('{"message": "the game diverged: l_q is nan at step 7."}')
    found = write.write_report(run, overwrite=True)
    assert found[0].text == "The game diverged: l_q is nan at step 7."
    assert not any("not finished" in finding.text for finding in found)


def test_overwriting_is_asked_for(run, reported, sentence, capfd):
    page, argv = run / "report.html", ["report", f"--workdir={run}", "--cache="]
    page.write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert "is not a report that adadfq wrote" in sentence([*argv, *flags])
        assert page.read_text() == "mine"
        assert not (run / "report").exists()
    shutil.copyfile(reported / "without" / "report.html", page)
    before = page.read_bytes()
    assert "exists; --overwrite replaces it." in sentence(argv)
    assert page.read_bytes() == before
    assert main.run([*argv, "--overwrite"]) == 0
    assert capfd.readouterr().out.endswith(f"{run / 'report.html'}\n")
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_figures_and_events_of_others_are_refused_and_kept(run, reported, capfd):
    """With --overwrite too, which is for a report."""
    argv = ["report", f"--workdir={run}", "--cache=", "--overwrite"]
    for name in ("report/losses.png", "tensorboard/events.out.tfevents.1.mine", "report"):
        path = run / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        assert main.run(argv) == 2
        assert f"{name}' would be replaced, but is not a" in capfd.readouterr().err
        assert path.read_text() == "mine"
        path.unlink()
        if path.parent != run:
            path.parent.rmdir()
    assert not (run / "report.html").exists()
    # What a report wrote is replaced, and what lies beside it stays.
    for name in ("report", "tensorboard"):
        shutil.copytree(reported / "without" / name, run / name)
    (run / "report" / "notes.txt").write_text("mine")
    assert main.run(argv) == 0
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert (run / "report" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--workdir=DIR is missing"),
        (["--workdir={folder}/nothing"], "holds neither a run nor a sweep"),
        (["--workdir={folder}/file"], "holds neither a run nor a sweep"),
        (["--workdir={folder}"], "holds neither a run nor a sweep"),
        (["--workdir={folder}", "--html=x"], "html"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, sentence, argv, words):
    (tmp_path / "file").write_text("mine")
    assert words in sentence(["report", *(word.format(folder=tmp_path) for word in argv)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_run_without_a_checkpoint_is_one_sentence(run, sentence):
    shutil.rmtree(run / "checkpoints")
    argv = ["report", f"--workdir={run}", "--cache="]
    assert "the checkpoints of the run in" in sentence(argv)
    (run / "result.json").unlink()
    assert "a run without a checkpoint yet" in sentence(argv)
    assert not (run / "report.html").exists()


def test_early_and_late_are_told_apart(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    evaluations = [record for record in records if "evaluation" in record]
    evaluations[0]["h_prime_histogram"] = [40] + 24 * [0]
    evaluations[1]["h_prime_histogram"] = 24 * [0] + [40]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    write.write_report(run)
    page = Page(run / "report.html")
    alt = page.images["h_prime_histogram"][0]
    assert "Step 6 the mean is 0.02. " in alt
    assert re.search(r"Now the mean is 0\.\d\d\. ", alt)
    assert "after steps 3, 6, 9, 12," in page.images["samples_over_time"][0]
    wide, narrow = (
        Image.open(io.BytesIO(page.images[name][1])).width
        for name in ("samples_over_time", "samples")
    )
    assert wide > 200
    assert narrow > 200


def test_tensorboard_events_are_the_log(reported):
    (file,) = (reported / "with" / "tensorboard").iterdir()
    seen = {}
    for event in _events(file.read_bytes()):
        for value in event.summary.value:
            seen.setdefault(value.tag, []).append((event.step, value))
    records = [
        json.loads(line) for line in (reported / "with" / "metrics.jsonl").read_text().splitlines()
    ]
    for tag, kind, name in (
        ("training/l_g", "phase", "l_g"),
        ("evaluation/top1", "evaluation", "top1"),
        ("evaluation/health", "evaluation", "health"),
    ):
        expected = [(record["step"], record[name]) for record in records if kind in record]
        found = [(step, value.simple_value) for step, value in seen[tag]]
        assert [step for step, _ in found] == [step for step, _ in expected]
        np.testing.assert_allclose(*([v for _, v in pairs] for pairs in (found, expected)))
    assert [step for step, _ in seen["generated"]] == [3, 6, 9, 12]
    step, value = seen["generated"][-1]
    picture = (reported / "with" / "samples" / f"{step:09}.png").read_bytes()
    assert value.image.height == Image.open(io.BytesIO(picture)).height


def _events(content):
    """Reads TensorBoard's records: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event  # slowly: it imports all of google.cloud

    place = 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield Event.FromString(content[place + 12 : place + 12 + length])
        place += length + 16


@pytest.mark.parametrize("package", ["matplotlib", "scipy", "tensorboardX"])
def test_without_a_package_the_command_to_install_it(run, capfd, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main.run(["report", f"--workdir={run}", "--cache="]) == 2
    assert "./launch/local.sh --with=report" in capfd.readouterr().err
    assert not (run / "report.html").exists()


# ---- Sweeps -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("default:.* gets no report")
def test_a_sweep_is_its_table_and_the_way_to_its_games(tmp_path, capfd):
    points = plan(make_small_config(), "bits=w3a3,w4a4;seed=0..1")
    results = [make_result(top1=0.5 + place / 100, best_top1=0.6) for place in range(3)]
    names = [point.name for point in points]
    for name, result in zip(names, results, strict=False):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(to_json(dataclasses.asdict(result)))
    (tmp_path / names[0] / "report.html").write_text("mine")
    (tmp_path / "sweep.json").write_text(json.dumps({"games": {name: {} for name in names}}))
    argv = ["report", f"--workdir={tmp_path}", "--cache="]
    assert main.run(argv) == 0
    assert f"warning: {names[1]} gets no report: " in capfd.readouterr().err
    assert "not finished: it has no table yet" in (tmp_path / "report.html").read_text()

    (tmp_path / names[3]).mkdir()
    (tmp_path / names[3] / "diverged.json").write_text("{}")
    games = list(itertools.zip_longest(points, results))
    table = {"rows": table_rows(games), "diverged": [names[3]], "outside": []}
    (tmp_path / "table.json").write_text(json.dumps(table))
    assert main.run(argv) == 2
    assert main.run([*argv, "--overwrite"]) == 0
    capfd.readouterr()
    page = Page(tmp_path / "report.html")
    rows = page.table()
    assert "50.50 ± 0.71" in rows["w3a3"]
    assert rows[names[2]] == ["finished", "52.00%", "25.00%", "75.00%", "3"]
    assert rows[names[3]][0] == "diverged"
    links = [link for link in page.references if not link.startswith("data:")]
    assert links == [
        f"{names[0]}/report.html",
        f"{names[1]}/result.json",
        f"{names[2]}/result.json",
    ]
    assert all((tmp_path / link).exists() for link in links)


def make_sweep(folder, grid, health=lambda top1: top1 / 2):
    """A sweep that nobody played, whose games differ in top-1 from place to place."""
    points = plan(make_small_config(), grid)
    games = []
    for place, point in enumerate(points):
        game = folder / point.name
        game.mkdir(exist_ok=True)
        top1 = [0.3 + place / 100, 0.4 + place / 100]
        result = make_result(top1=top1[1], best_top1=0.6, healthiest_top1=0.5)
        records = [
            {"step": 6, "phase": "play", "steps_per_second": 1.0, "h_prime": 0.1 + place / 100},
            {"step": 12, "phase": "play", "steps_per_second": 1.0, "h_prime": 0.5 + place / 100},
        ] + [
            {
                "step": step,
                "evaluation": True,
                "top1": value,
                "loss": 2.0,
                "held_out_loss": 1.0,
                "agreement": 0.5,
                "in_margin": 0.5,
                "held_out_l_bns": 1 - value,
                "health": health(value),
            }
            for step, value in zip((6, 12), top1, strict=True)
        ]
        (game / "result.json").write_text(to_json(dataclasses.asdict(result)))
        (game / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
        (game / "report.html").write_text("")
        games.append((point, result))
    table = {"rows": table_rows(games), "diverged": [], "outside": []}
    (folder / "table.json").write_text(json.dumps(table))
    values = {point.name: dict(point.values) for point in points}
    (folder / "sweep.json").write_text(json.dumps({"games": values}))
    write.write_report(folder, overwrite=True)
    return Page(folder / "report.html")


@pytest.mark.parametrize(("sign", "rank"), [(1, "1.00"), (-1, "-1.00")])
def test_how_well_the_score_ranks_accuracy(tmp_path, sign, rank):
    page = make_sweep(tmp_path, "bits=w3a3,w4a4;seed=0..1", lambda top1: 0.5 + sign * top1 / 4)
    assert set(page.images) == {"accuracy", "h_prime", "generalisation", "health"}
    assert f"is {rank} over 4 last students and {rank} over all 8" in page.images["health"][0]
    rows = page.table()
    assert rows["health score"][:2] == [rank, rank]
    assert rows["L_BNS alone, negated"][:2] == ["1.00", "1.00"]
    assert rows["agreement alone"] == ["not known"] * 3  # all alike
    assert "w3a3: 40.50. w4a4: 42.50." in page.images["accuracy"][0]
    alt = page.images["h_prime"][0]
    assert re.search(r"w4a4: 0\.1[23] at first, 0\.5[23] in the end\.", alt)


def test_two_numbers_are_a_heat_map(tmp_path):
    page = make_sweep(tmp_path, "game.lambda_l=0,0.1,0.4;game.lambda_u=0.6,0.8,1")
    alt = page.images["surface"][0]
    assert "from 40.00 to 48.00 percent" in alt
    assert "The frame is the region that the paper reports" in alt
    assert (
        "the lowest, the middle and the highest in the end"
        in (tmp_path / "report.html").read_text()
    )
    assert alt.startswith("Top-1 over game.lambda_u and game.lambda_l, ")


@pytest.mark.filterwarnings("default:.*damaged")
def test_a_damaged_game_stops_nobody(tmp_path):
    make_sweep(tmp_path, "bits=w3a3,w4a4;seed=0..1")
    (tmp_path / "w3a3_seed0" / "result.json").write_text("{")
    (tmp_path / "w4a4_seed1" / "result.json").write_text("{}")
    for name in ("w3a3_seed0", "w4a4_seed1"):
        (tmp_path / name / "report.html").write_text("")
    table = json.loads((tmp_path / "table.json").read_text())
    table["rows"].pop()
    (tmp_path / "table.json").write_text(json.dumps(table | {"outside": ["w5a5_seed0"]}))
    write.write_report(tmp_path, overwrite=True)
    page = Page(tmp_path / "report.html")
    assert page.table()["w3a3_seed0"][0] == "not finished"
    assert page.table()["w4a4_seed0"][:2] == ["finished", "42.00%"]
    text = (tmp_path / "report.html").read_text()
    assert "This table is of an earlier grid" in text
    assert "not in this grid: w5a5_seed0" in text


def test_accuracy_over_size_and_agreement_where_nobody_knows_it():
    def row(bits, top1, size):
        return sweep_figures.Row(bits, {}, top1, [], [0.5, 0.7], size, [])

    rows = [row("w3a3", [0.8], 101000), row("w4a4", [0.9, 0.92], 135000)]
    assert sweep_figures.sizes(rows).alt == (
        "w3a3: 101 kB, top-1 80.00 percent. w4a4: 135 kB, top-1 91.00 percent."
    )
    alt = sweep_figures.sizes([*rows, row("w5a5", [], 169000)]).alt
    assert "w5a5: 169 kB, agreement on generated images 60.00 percent." in alt
    assert sweep_figures.sizes(rows[:1]) is None
    assert sweep_figures.sizes([rows[0], row("w4a4", [0.9], None)]) is None


def test_methods_are_no_heat_map(tmp_path):
    page = make_sweep(tmp_path, "student.milestones=(1,2),(3,);game.gamma=0.5,1")
    assert "surface" not in page.images
    page = make_sweep(tmp_path, "game.method=adadfq,gdfq;game.gamma=0.5,1")
    assert "surface" not in page.images
    assert "adadfq, gamma 0.5: 40.00." in page.images["accuracy"][0]
