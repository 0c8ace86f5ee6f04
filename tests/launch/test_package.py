"""What users install: the source distribution, the wheel made of it, and a run from that alone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest

from tests import ROOT

# What is built from, with folders that must stay out of the wheel.
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "adadfq_jax", "configs", "tests")
ASSETS = ("digits_resnet20.safetensors", "digits_validation.npz", "digits_test.npz")

# The built-in example, for one step of each player.
A_SHORT_RUN = """
import adadfq_jax
from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST

config = adadfq_jax.default_config("w4a2")
config.teacher.path = str(DIGITS_TEACHER)
config.data.source, config.data.path = "npz", str(DIGITS_TEST)
config.quant.overrides = ("stem_*=w8a8", "classifier=w8")
config.steps_per_epoch = config.calibration_epochs = config.warmup_epochs = 1
config.epochs = 2
student = adadfq_jax.quantize(config, workdir="run")
print(student.result.steps, student.result.evaluation_images)
"""

WHAT_IS_INSTALLED = """
import adadfq_jax
from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST

teacher = adadfq_jax.load_teacher(DIGITS_TEACHER)
print(adadfq_jax.__file__)
print(teacher.architecture, len(adadfq_jax.load_dataset("npz", DIGITS_TEST)))
"""


def run(*words, cwd, **environment):
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        capture_output=True,
        text=True,
        # Nothing of the clone is on the path.
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(kind, source):
    """Builds a distribution by setuptools alone, which needs no network; returns its path."""
    program = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    run(sys.executable, "-c", program, cwd=source)
    (path,) = (source / "dist").iterdir()
    return path


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Returns (the source distribution, the wheel that is built of it)."""
    source, unpacked = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("unpacked")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source)
    sdist = build("sdist", source)
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    return sdist, build("wheel", next(unpacked.iterdir()))


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Returns the `bin` of an environment that has the wheel, and borrows what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    # Its own packages come first; a path of a .pth file does not run that folder's .pth files, so
    # that a clone that is installed as editable stays out.
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    borrowed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    with open(f"{own.strip()}/borrowed.pth", "w") as file:
        file.write("\n".join(borrowed))
    install = ("--python", python, "install", "--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", *install, distributions[1], cwd=folder)
    return folder / "bin"


def test_the_wheel_holds_the_package_and_its_data_alone(distributions):
    sdist, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    assert {f"adadfq_jax/assets/{name}" for name in ASSETS} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "adadfq_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"adadfq_jax"}
    assert any(name.endswith("/LICENSE") for name in names)
    assert (ROOT / "README.md").read_text() in described
    assert "Author: The adadfq_jax developers" in described
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/pyproject.toml") for name in archive.getnames())


def test_a_citation_a_changelog_and_a_version_say_the_same(distributions):
    import adadfq_jax

    version = adadfq_jax.__version__
    assert f"-{version}-" in distributions[1].name
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()
    assert f"version = {{{version}}}" in (ROOT / "README.md").read_text()


def test_the_installed_package_reads_its_own_example(installed, tmp_path):
    file, found = run(installed / "python", "-c", WHAT_IS_INSTALLED, cwd=tmp_path).splitlines()
    assert file.startswith(str(installed.parent))
    assert found == "resnet20_cifar 360"


@pytest.mark.packages
def test_the_installed_package_quantizes(installed, tmp_path):
    out = run(installed / "python", "-c", A_SHORT_RUN, cwd=tmp_path)
    assert out.splitlines()[-1] == "2 360"
    assert (tmp_path / "run" / "result.json").exists()


def test_the_installed_command_takes_a_configuration_by_name_in_any_folder(installed, tmp_path):
    argv = ("quantize", "--config=digits_resnet20:w3a3", "--workdir=run", "--dry-run")
    out = run(installed / "adadfq", *argv, cwd=tmp_path, JAX_PLATFORMS="cpu")
    assert out.startswith("resnet20_cifar to w3a3 by adadfq, 1800 steps, on ")
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_answers(installed, tmp_path):
    from adadfq_jax import __version__

    assert run(installed / "adadfq", "--version", cwd=tmp_path) == f"adadfq_jax {__version__}\n"
