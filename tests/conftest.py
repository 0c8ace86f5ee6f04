"""Groups of slow tests, what the tests cost, small games."""

import dataclasses
import functools
import resource
import types
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adadfq_jax
from adadfq_jax.cli import main
from adadfq_jax.config.fields import default_config
from adadfq_jax.game import programs
from adadfq_jax.models import registry
from adadfq_jax.models.network import Teacher
from adadfq_jax.models.preparation import Preparation
from adadfq_jax.training.result import Result

SIZE = 8

# Linux allows 65,530.
MAPS, MOST_MAPS = Path("/proc/self/maps"), 20_000

# Groups of tests that take minutes; README.md says when each is due.
GROUPS = {
    "parity": "steps of large networks and of ablations against the transcription",
    "networks": "all networks, where the fast tests have one of each kind",
    "imagenet": "whole games and files at 224 pixels",
    "devices": "several devices, processes of several numbers, compilers for TPU and CUDA",
    "kills": "runs that are stopped or killed again and again",
    "mutations": "thousands of damaged checkpoints",
    "real_data": "the real CIFAR-10 teacher and its test images",
    "packages": "networks of timm and torchvision; the installed wheel; the notebook; a rehearsal",
    "engines": "ONNX files in OpenVINO and in old versions of onnxruntime, and their speed",
}


def pytest_configure(config):
    for name, what in GROUPS.items():
        config.addinivalue_line("markers", f"{name}: {what} (slow)")


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items):
    for item in items:
        if any(item.get_closest_marker(name) for name in GROUPS):
            item.add_marker("slow")


def pytest_terminal_summary(terminalreporter):
    """Says what the tests have cost, with the processes that they started."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(each.ru_utime + each.ru_stime for each in used)
    terminalreporter.write_line(f"{seconds:.0f} processor-seconds, with all processes")


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Drops compiled programs after a file, before they pass the system's limit of memory maps."""
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        programs._compiled.cache_clear()
        jax.clear_caches()


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


def make_teacher(
    seed: int = 0, architecture: str = "resnet8_cifar", size: int = SIZE, classes: int = 10
) -> Teacher:
    """An untrained teacher with BatchNorm statistics and scales that are not trivial."""
    module = registry.build(architecture, classes)
    variables = jax.tree.map(
        np.asarray, registry.initial_variables(module, size, jax.random.key(seed))
    )
    random = np.random.default_rng(seed)

    def disturb(path, leaf):
        name = path[-1].key
        if name == "var" or name == "scale":
            return random.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
        if name in ("mean", "bias"):
            return random.normal(0, 0.2, leaf.shape).astype(leaf.dtype)
        return leaf

    kept = {name: variables[name] for name in ("params", "batch_stats")}
    return Teacher(
        architecture=architecture,
        module=module,
        variables=jax.tree_util.tree_map_with_path(disturb, kept),
        image_size=size,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )


def takes(size: int, channels: int = 3, **preparation) -> types.SimpleNamespace:
    """What an evaluation set has to know of a network that takes images of a size."""
    return types.SimpleNamespace(
        image_size=size, channels=channels, preparation=Preparation(**preparation)
    )


def settled(teacher: Teacher) -> Teacher:
    """The teacher with BatchNorm statistics as inputs of noise have them."""
    module = teacher.module.clone(
        norm=functools.partial(flax.linen.BatchNorm, use_running_average=False, momentum=0.0)
    )
    size = teacher.image_size
    images = np.random.default_rng(0).normal(size=(16, size, size, 3))
    images = images.astype(jnp.result_type(float))
    _, written = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(
        teacher.variables, images
    )
    statistics = jax.tree.map(np.asarray, written["batch_stats"])
    return dataclasses.replace(teacher, variables=teacher.variables | {"batch_stats": statistics})


@pytest.fixture
def teacher() -> Teacher:
    return make_teacher()


def make_result(**fields):
    """The result of a run that nobody played."""
    known = {field.name: None for field in dataclasses.fields(Result)}
    known |= {"architecture": "resnet8_cifar", "weight_bits": 4, "activation_bits": 4}
    known |= {"overrides": [], "seed": 0, "teacher_top1": 0.9, "calibrated_top1": 0.25}
    known |= {"health": 0.5, "agreement": 0.75, "seconds": 3.0, "steps": 12}
    known |= {"steps_per_second": 10.0}
    return Result(**known | fields)


def assert_exported(student, path, images):
    """Asserts that a student's file answers as it does, and bit for bit in some formats."""
    assert adadfq_jax.export(student, path, images=images).agreement == 1
    found = np.asarray(adadfq_jax.load_exported(path)(images))
    expected = np.asarray(student(images))
    assert np.median(np.abs(found - expected).max(1) / np.ptp(expected)) < 1e-5
    if path.suffix in (".safetensors", ".pth"):
        np.testing.assert_array_equal(found, expected)


def make_small_config():
    """Twelve steps over all three phases, one device."""
    config = default_config("w4a4")
    config.batch_size = 8
    config.steps_per_epoch = 3
    config.calibration_epochs, config.warmup_epochs, config.epochs = 1, 2, 4
    config.devices = 1
    config.steps_per_dispatch = 1  # as on CPUs by default: tests stop after single steps
    config.log_every_steps = 1
    config.evaluation.generated_images = 40
    return config


@pytest.fixture
def small_config():
    return make_small_config()


def one_sentence(code, out, err):
    """Returns what a verb says that refuses what it is given: one sentence, and nothing else."""
    assert (code, out) == (2, ""), err
    assert err.startswith("adadfq ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.fixture
def sentence(capfd):
    """Runs a verb that must refuse what it is given, and returns its one sentence."""

    def run(argv):
        capfd.readouterr()  # of what was done before
        return one_sentence(main.run([str(word) for word in argv]), *capfd.readouterr())

    return run
