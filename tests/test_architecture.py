"""The rooms of the package: imports run downhill, nothing runs back up, and there is no circle."""

import ast
import collections
import graphlib
import re

import pytest

from tests import ROOT

PACKAGE = ROOT / "adadfq_jax"

# From high to low; a room may import from rooms of lower rows, and within itself.
ROWS = (
    ("cli",),
    ("allocation", "measuring"),
    ("reporting",),
    ("sweeps",),
    ("training",),
    ("exporting", "benchmarks"),
    ("config", "evaluation"),
    ("teachers", "game"),
    ("models", "devices", "data"),
    ("quantization", "storage"),
    ("ops", "errors"),
)
RANK = {room: rank for rank, rooms in enumerate(reversed(ROWS)) for room in rooms}
# The naive transcription imports nothing of ours, and only what compares with it imports that; the
# built-in example is data for all, and the scripts that made teachers and curves stand above all.
ALONE = ("assets", "reference")
SCRIPTS = (
    "adadfq_jax.__main__",
    "adadfq_jax.assets.draw_curves",
    "adadfq_jax.assets.make_digits",
    "adadfq_jax.assets.play_transcription",
    "adadfq_jax.assets.train_teachers",
)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
# Here and not in the tests: Python 3.11 raises SystemError where, in the middle of parsing, it
# collects garbage with finalizers, such as other tests leave.
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(name):
    """Returns the modules of this package that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "adadfq_jax":
            found |= {
                f"{node.module}.{alias.name}"
                if f"{node.module}.{alias.name}" in FILES
                else node.module
                for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in FILES}
    return found - {"adadfq_jax"}


def room(name):
    return name.split(".")[1]


@pytest.mark.parametrize("name", [name for name in FILES if "." in name])
def test_imports_run_downhill(name):
    if name in SCRIPTS:
        return
    for other in imports(name):
        if room(other) == room(name) or room(other) == "assets":
            continue
        if room(other) == "reference":
            assert room(name) == "benchmarks", f"{name} imports {other}"
            continue
        assert room(name) not in ALONE, f"{name} imports {other}"
        assert RANK[room(other)] < RANK[room(name)], (
            f"{name} imports {other}, which is not below it"
        )


def test_there_is_no_circle():
    graph = {name: imports(name) for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_room_has_a_row():
    rooms = {room(name) for name in FILES if "." in name} - {"__main__"}
    assert rooms == set(RANK) | set(ALONE)


def test_faces_hold_no_code():
    """An `__init__` of a room says what the room is, and at most names what is in it."""
    for name, path in FILES.items():
        if path.name != "__init__.py" or name in ("adadfq_jax", "adadfq_jax.assets"):
            continue
        kinds = collections.Counter(type(node) for node in TREES[name].body)
        assert set(kinds) <= {ast.Expr, ast.ImportFrom, ast.Assign}, name


@pytest.mark.parametrize("name", list(FILES))
def test_docstrings_name_files_that_are_there(name):
    """Of `file.py` and `room/file.py` in docstrings, from the project, the package or the room."""
    text = "\n".join(
        ast.get_docstring(node) or ""
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    for found in re.findall(r"`([\w/]+\.py)`", text):
        assert any((folder / found).is_file() for folder in (ROOT, PACKAGE, FILES[name].parent)), (
            f"{name} names {found}"
        )
