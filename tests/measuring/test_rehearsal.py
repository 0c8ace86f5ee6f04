"""The script that measures a GPU, with small networks, on this machine's CPU."""

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT


@pytest.mark.packages
def test_a_rehearsal_measures_every_part(tmp_path):
    (tmp_path / "wheels").mkdir()
    output = tmp_path / "out"

    def call(*flags):
        flags = (f"--wheels={tmp_path}/wheels", f"--output={output}", "--platform=cpu", *flags)
        done = subprocess.run(
            [ROOT / "launch" / "gpu_measure.sh", *flags],
            env=os.environ | {"PYTHON": sys.executable},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed = call("--rehearse", "--minutes=30")
    assert [path.name for path in output.iterdir()] == ["measured.json"]
    entries = json.loads((output / "measured.json").read_text())["parts"]
    statuses = {name: entry["status"] for name, entry in entries.items()}
    assert statuses.pop("forecast") == "left out"
    assert set(statuses.values()) == {"done"}, entries
    assert set(statuses) == {"parity", "same", "speed_16", "speed_64", "w3a3", "w3a3_plus"}
    assert entries["w3a3"]["result"]["steps"] == entries["w3a3"]["steps"] == 6
    assert entries["speed_16"]["result"]["ratio"] > 0
    assert printed.count("not measured") == 1  # the forecast
    assert call("--minutes=0") == printed
    assert "passed" in printed
