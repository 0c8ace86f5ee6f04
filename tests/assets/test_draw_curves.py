"""The table and the figure of long runs."""

import json

import pytest
from PIL import Image

from adadfq_jax.assets import draw_curves


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    records = [
        {"step": 50, "phase": "play", "agreement": 0.5, "l_bns": 2.0},
        {"step": 100, "phase": "play", "agreement": 0.75, "l_bns": 0.4},
        {"step": 100, "evaluation": True, "top1": 0.8125},
        {"step": 150, "phase": "play", "agreement": 0.9, "l_bns": float("inf")},
        {"step": 150, "evaluation": True, "top1": 0.5},
        {"step": 200, "evaluation": True, "top1": None},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def play(*words):
    draw_curves.main(list(map(str, words)))


def test_a_line_is_an_evaluation_and_what_was_logged_before_it(tmp_path, run):
    curves = tmp_path / "curves.csv"
    play(f"--curves={curves}", f"--run=w3a3={run}", f"--run=w3a3, other={run}")
    own = ["100,81.25,75,0.4", "150,50.00,90,0.4"]  # an infinite L_BNS is left out
    assert curves.read_text().splitlines() == [
        "run,step,top1,agreement,l_bns",
        *(f"w3a3,{line}" for line in own),
        *(f'"w3a3, other",{line}' for line in own),
    ]
    figure = tmp_path / "curves.png"
    play(f"--curves={curves}", f"--figure={figure}")
    with Image.open(figure) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "curves.csv: No such file"),
        ("", "is no table of run, step"),
        ("run,step\na,1\n", "is no table"),
        ("run,step,top1,agreement,l_bns\n", "has no line"),
        ("run,step,top1,agreement,l_bns\na,b,c,d,e\n", "line 2"),
        ("run,step,top1,agreement,l_bns\na,1,50,,\na,2,nan,,\n", "line 3: top1 must be"),
        ("run,step,top1,agreement,l_bns\na,1,50,101,\n", "agreement must be .* at most 100"),
        ("run,step,top1,agreement,l_bns\na,1,50,,-1\n", "l_bns must be at least 0, not -1"),
        ("run,step,top1,agreement,l_bns\na,-1,50,,\n", "step must be at least 0 .*, not -1"),
        ("run,step,top1,agreement,l_bns\na,1,50,,,6\n", "line 2: there must be 5 cells"),
        ("run,step,top1,agreement,l_bns\n\xff,1,50,,\n", "is no table of .*: 'utf-8' codec"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, says):
    curves, figure = tmp_path / "curves.csv", tmp_path / "curves.png"
    if text is not None:
        curves.write_text(text, encoding="latin-1")
    with pytest.raises(SystemExit, match=says):
        play(f"--curves={curves}", f"--figure={figure}")
    assert not figure.exists()


def test_a_spreadsheets_table_without_agreement_is_drawn(tmp_path, recwarn):
    curves, figure = tmp_path / "curves.csv", tmp_path / "curves.png"
    curves.write_text("run,step,top1,agreement,l_bns\na,1,50,,\n", encoding="utf-8-sig")
    play(f"--curves={curves}", f"--figure={figure}")
    assert figure.exists()
    assert not recwarn.list


def test_a_run_replaces_its_own_lines_and_keeps_the_others(tmp_path, run):
    curves = tmp_path / "curves.csv"
    heading = "run,step,top1,agreement,l_bns\n"
    curves.write_text(f"{heading}a,1,50.00,,\nb,1,60.00,,\nb,2,61.00,,\nc,1,70.00,,\n")
    play(f"--curves={curves}", f"--run=b={run}", f"--run=d={run}")
    own = ["{},100,81.25,75,0.4", "{},150,50.00,90,0.4"]
    assert curves.read_text().splitlines()[1:] == [
        "a,1,50.00,,",
        *(line.format("b") for line in own),
        "c,1,70.00,,",
        *(line.format("d") for line in own),
    ]


def test_a_table_that_has_only_its_heading_takes_a_run(tmp_path, run):
    curves = tmp_path / "curves.csv"
    curves.write_text("run,step,top1,agreement,l_bns\n")
    play(f"--curves={curves}", f"--run=b={run}")
    assert len(curves.read_text().splitlines()) == 3


def test_a_name_is_no_formula(tmp_path, run):
    places = f"--curves={tmp_path / 'c.csv'}", f"--figure={tmp_path / 'c.png'}"
    play(*places, rf"--run=$\frac{{$={run}")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"step": -5, "evaluation": True, "top1": 0.5}, "step -5: step must be at least 0"),
        (
            {"step": 10**10, "evaluation": True, "top1": 0.5},
            "step must be .* at most 1,000,000,000",
        ),
        ({"step": 5, "evaluation": True, "top1": 1.5}, "top1 must be .* not 150.00"),
    ],
)
def test_a_log_that_cannot_be_leaves_the_table_as_it_was(tmp_path, run, record, says):
    curves = tmp_path / "curves.csv"
    play(f"--curves={curves}", f"--run=a={run}")
    table = curves.read_text()
    with (run / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(record) + "\n")
    with pytest.raises(SystemExit, match=f"run 'b', .*{says}"):
        play(f"--curves={curves}", f"--run=b={run}")
    assert curves.read_text() == table


@pytest.mark.parametrize("flag", ["curves", "figure"])
def test_somebody_elses_file_is_kept(tmp_path, run, flag):
    places = {"curves": tmp_path / "curves.csv", "figure": tmp_path / "curves.png"}
    places[flag].write_text("theirs")
    with pytest.raises(SystemExit, match=r"curves\.(csv is no table|png' would be replaced)"):
        play(*(f"--{name}={path}" for name, path in places.items()), f"--run=w3a3={run}")
    assert places[flag].read_text() == "theirs"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("at", ["missing", "run/metrics.jsonl"])
def test_what_is_no_folder_of_a_run_is_named(tmp_path, run, at):
    with pytest.raises(SystemExit, match=f"'.*{at}' is not the folder of a run"):
        play(f"--curves={tmp_path / 'curves.csv'}", f"--run=w3a3={tmp_path / at}")


@pytest.mark.parametrize("flag", ["curves", "figure"])
def test_a_folder_that_is_missing_is_named_before_anything_is_written(tmp_path, run, flag):
    places = {"curves": tmp_path / "curves.csv", "figure": tmp_path / "curves.png"}
    places[flag] = tmp_path / "missing" / places[flag].name
    with pytest.raises(SystemExit, match=r"there is no folder '.*missing' to write curves\."):
        play(*(f"--{name}={path}" for name, path in places.items()), f"--run=w3a3={run}")
    assert list(tmp_path.iterdir()) == [run]


def test_a_run_without_evaluation_leaves_the_table_as_it_was(tmp_path):
    curves = tmp_path / "curves.csv"
    table = "run,step,top1,agreement,l_bns\nw3a3,1,50.00,,\n"
    curves.write_text(table)
    with pytest.raises(SystemExit, match="'w3a3' has no evaluation on images"):
        play(f"--curves={curves}", f"--run=w3a3={tmp_path}")
    assert curves.read_text() == table


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--run=w3a3"], "not 'w3a3'"),
        ([], "give runs"),
        (["--run=a="], "'a='"),
        (["--run=a=b", "--run=a=c"], "names 'a' twice"),
        (["--figure=c.csv"], "--figure must end in .png, not 'c.csv'"),
        (["--figure=c.png", "--curves=c.txt"], "--curves must end in .csv"),
    ],
)
def test_flags_that_say_too_little(capsys, words, says):
    with pytest.raises(SystemExit):
        draw_curves.parse(["--curves=c.csv", *words])
    assert says in capsys.readouterr().err
