"""The flags of every verb: what their table makes of them."""

import os
import shlex

import pytest

from adadfq_jax.cli import main
from adadfq_jax.cli.flags import CONFIG, describe, parse, preset_names
from adadfq_jax.cli.table import EXAMPLES, FLAGS
from adadfq_jax.cli.verbs import VERBS
from adadfq_jax.config.fields import FIELDS
from adadfq_jax.config.kinds import INTEGER, SWITCH
from adadfq_jax.errors import ConfigError
from tests import ROOT

BASE = f"--config={ROOT / 'configs' / 'base.py'}"


def _has_config(verb):
    return any(flag.name == CONFIG.name for flag in FLAGS[verb])


def test_programs_are_kept_where_jax_is_told_to_keep_them():
    (cache,) = (flag for flag in FLAGS["quantize"] if flag.name == "cache")
    assert cache.default == os.environ["JAX_COMPILATION_CACHE_DIR"]


def words(verb, *without):
    """Returns a command line with every flag that the verb requires."""
    given = {flag.name: f"--{flag.name}=1" for flag in FLAGS[verb] if flag.required}
    given |= {"config": BASE} if _has_config(verb) else {}
    return [word for name, word in given.items() if name not in without]


def test_every_verb_has_flags_and_an_example_and_no_other():
    assert list(FLAGS) == list(VERBS) == list(EXAMPLES)


@pytest.mark.parametrize("verb", EXAMPLES)
def test_examples_are_understood_and_stand_in_the_help(verb, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    parse(verb, FLAGS[verb], shlex.split(EXAMPLES[verb]))
    main.run([verb, "--help"])
    assert f"\n  adadfq {verb} {EXAMPLES[verb]}\n" in capfd.readouterr().out


@pytest.mark.parametrize("verb", FLAGS)
def test_help_begins_with_the_flags_that_must_be_given(verb, capfd):
    main.run([verb, "--help"])
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("  --")]
    needed = [line.endswith(" (needed)") for line in lines]
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize("name", preset_names())
def test_a_configuration_by_name_is_the_one_of_its_file(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    by_name, by_file, in_two_words = (
        parse("quantize", FLAGS["quantize"], [*given, "--workdir=x"]).config
        for given in (
            [f"--config={name}:w3a2"],
            [f"--config={ROOT / 'configs' / name}.py:w3a2"],
            ["--config", f"{name}:W3A2"],
        )
    )
    assert by_name.to_json() == by_file.to_json() == in_two_words.to_json()
    assert by_name.quant.weight_bits == 3


def test_the_files_of_the_project_are_the_names_of_the_package():
    assert sorted(path.stem for path in (ROOT / "configs").glob("*.py")) == preset_names()
    assert {"base", "digits_resnet20", "teacher"} <= set(preset_names())


def test_dashes_in_a_flag_are_underscores():
    given = parse("quantize", FLAGS["quantize"], [*words("quantize"), "--dry-run"])
    assert given.dry_run


@pytest.mark.parametrize("verb", FLAGS)
def test_help_lists_every_flag_and_field(verb, capfd):
    assert main.run([verb, "--help"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    for flag in FLAGS[verb]:
        (line,) = (line for line in out.splitlines() if line.split()[:1] == [flag.usage])
        assert flag.help in line
        assert line.endswith(" (needed)") == flag.required
    for name in FIELDS:
        assert (f"\n  {name} " in out) == _has_config(verb)


@pytest.mark.parametrize(
    ("verb", "flag"),
    [(verb, flag) for verb, table in FLAGS.items() for flag in table if flag.required],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
def test_a_required_flag_that_is_missing_is_told(verb, flag):
    parse(verb, FLAGS[verb], words(verb))
    with pytest.raises(ConfigError) as error:
        parse(verb, FLAGS[verb], words(verb, flag.name))
    assert str(error.value) == f"{flag.usage} is missing: {flag.help}."


@pytest.mark.parametrize("verb", FLAGS)
def test_values_have_their_types_and_bounds(verb):
    for flag in FLAGS[verb]:
        wrong = {INTEGER: ["x", "1.5"], SWITCH: ["maybe"]}.get(flag.kind, [])
        if flag.least is not None:
            wrong.append(str(flag.least - 1))
        for value in wrong:
            with pytest.raises(ConfigError) as error:
                parse(verb, FLAGS[verb], [*words(verb), f"--{flag.name}={value}"])
            assert str(error.value) == f"--{flag.name}={value}: it must be {flag.right}."


def test_defaults_are_the_tables():
    given = parse("benchmark", FLAGS["benchmark"], words("benchmark"))
    assert (given.steps, given.rounds, given.parts, given.json) == (10, 5, True, False)
    assert "(default 10)" in describe("benchmark", "", FLAGS["benchmark"], "")
    assert "(default 2,3,4,5,6,8)" in describe("allocate", "", FLAGS["allocate"], "")
    assert given.config.batch_size == 16
    given = parse("benchmark", FLAGS["benchmark"], [*words("benchmark"), "--noparts", "--steps=3"])
    assert (given.steps, given.parts) == (3, False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--wrokdir=x"], "unknown flag 'wrokdir': did you mean workdir?"),
        (["--workdir"], "--workdir has no value, which must be text."),
        (["--config.seed"], "--config.seed has no value, which must be an integer, at least 0"),
        (["--config.remat=maybe"], "--config.remat=maybe: it must be True or False."),
        (["--config.quant.learned_ranges", "--config.game.beta=x"], "x: it must be a finite numb"),
        (["--config.batch_size", "four"], "--config.batch_size=four: it must be an integer, at"),
        (
            ["--config.quant.overrides=a=w8,b=w8"],
            "--config.quant.overrides=a=w8,b=w8: it must be a tuple of texts such as ('",
        ),
        (["-config.batchsize", "3"], "unknown field 'batchsize': did you mean batch_size"),
        (["--noconfig.remt"], "unknown field 'remt': did you mean remat?"),
        (["--epochs=2"], "unknown flag 'epochs': did you mean --config.epochs?"),
        *(
            (
                [f"--config.{section}.foo=2"],
                f"unknown field '{section}.foo': there are {len(FIELDS)}, the nearest {section}.",
            )
            for section in ("game", "student")
        ),
        ([BASE], f"--config is given 2 times: {BASE[9:]}, {BASE[9:]}; give one."),
    ],
)
def test_what_is_wrong_is_told_in_our_words(argv, message):
    with pytest.raises(ConfigError) as error:
        parse("quantize", FLAGS["quantize"], [*words("quantize"), *argv])
    assert message in str(error.value)


def test_a_dry_run_refuses_the_bits_that_the_run_would(sentence, tmp_path):
    given = ["quantize", "--config=digits_resnet20", f"--workdir={tmp_path / 'run'}", "--dry_run"]
    overrides = "--config.quant.overrides=('stage9=w3',)"
    assert "matches no layer" in sentence([*given, overrides, "--cache="])
