"""The notebook: what is committed of it, and that it runs."""

import ast
import json
import re
import socket

import pytest

from tests import ROOT

NOTEBOOK = ROOT / "launch" / "quickstart.ipynb"


def cells(kind):
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def outputs(cell):
    """Returns the text of what a cell shows, pictures left out."""
    shown = []
    for output in cell["outputs"]:
        shown += output.get("text", [])
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/"):
                shown += data
    return re.sub(r"data:image/png;base64,[^']+", "", "".join(shown))


def top1_of(text):
    """Returns the shares that a cell prints, in percent."""
    return [float(number) for number in re.findall(r"([\d.]+)%", text)]


def test_what_is_committed_was_executed_and_names_no_machine():
    code = cells("code")
    for number, cell in enumerate(code, start=1):
        ast.parse("".join(cell["source"]))
        assert cell["execution_count"] == number
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
    shown = "\n".join(map(outputs, code))
    assert not re.search(r"(?<![<\w])/\w+/\w", shown), shown
    assert socket.gethostname() not in shown
    assert NOTEBOOK.stat().st_size < 200_000
    teacher, calibrated, trained = top1_of(outputs(code[4]))
    assert calibrated + 10 < trained <= teacher
    assert "image/png" in json.dumps(code[3]["outputs"])


@pytest.mark.packages
def test_it_runs(tmp_path):
    import nbclient
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _, calibrated, trained = top1_of(outputs(code[4]))
    assert calibrated + 10 < trained
    exported = top1_of(outputs(code[5]))[-1]
    assert abs(exported - trained) < 1
    assert list(tmp_path.iterdir()) == []
