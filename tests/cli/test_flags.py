"""The flags of every verb: what their table makes of them."""

import pytest

from adadfq_jax.cli import main
from adadfq_jax.cli.flags import CONFIG, describe, parse
from adadfq_jax.cli.table import FLAGS
from adadfq_jax.cli.verbs import VERBS
from adadfq_jax.config.fields import FIELDS
from adadfq_jax.config.kinds import INTEGER, SWITCH
from adadfq_jax.errors import ConfigError
from tests import ROOT

BASE = f"--config={ROOT / 'configs' / 'base.py'}"


def _has_config(verb):
    return any(flag.name == CONFIG.name for flag in FLAGS[verb])


def words(verb, *without):
    """Returns a command line with every flag that the verb requires."""
    given = {flag.name: f"--{flag.name}=1" for flag in FLAGS[verb] if flag.required}
    given |= {"config": BASE} if _has_config(verb) else {}
    return [word for name, word in given.items() if name not in without]


def test_every_verb_has_flags_and_no_other():
    assert list(FLAGS) == list(VERBS)


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
    assert "(default 10)" in describe("benchmark", "", FLAGS["benchmark"])
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
        ([BASE], f"--config is given 2 times: {BASE[9:]}, {BASE[9:]}; give one."),
    ],
)
def test_what_is_wrong_is_told_in_our_words(argv, message):
    with pytest.raises(ConfigError) as error:
        parse("quantize", FLAGS["quantize"], [*words("quantize"), *argv])
    assert message in str(error.value)
