"""What the README promises runs."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_notebook_snippet_runs_and_leaves_no_file(tmp_path):
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[:1]
    finished = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    teacher, student = map(float, finished.stdout.split()[-2:])
    assert teacher > 0.97
    assert student > 0.9
    assert list(tmp_path.iterdir()) == []


def test_every_file_that_it_names_exists():
    names = re.findall(r"\b(?:configs|launch|tests|adadfq_jax)/[\w/]+\.\w+", README.read_text())
    assert names
    for name in names:
        assert (README.parent / name).exists(), name
