"""Fields of a configuration: their checks, and what tells one run from another."""

import json
import re

import pytest
from absl import flags
from ml_collections import config_flags

from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import FIELDS, default_config
from adadfq_jax.config.identity import differences, identity, to_json
from adadfq_jax.errors import ConfigError
from tests import ROOT

FILES = sorted(ROOT.joinpath("configs").glob("*.py"))


def from_shell(*argv):
    """Reads a configuration as the command line does."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *argv])
    values(["", *argv])
    return values.config


def changed(field, value):
    config = default_config()
    config.update_from_flattened_dict({field: value})
    return config


def test_fields_can_be_set_but_not_added():
    config = default_config()
    config.game.alpha_ds = 0.5
    with pytest.raises(AttributeError, match="alpha_dss"):
        config.game.alpha_dss = 0.5
    with pytest.raises(TypeError):
        config.batch_size = "16"


def test_bits_by_word_and_by_name_are_the_same():
    assert to_json(default_config("w3a5")) == to_json(
        default_config(weight_bits=3, activation_bits=5)
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("batch_size", 1),
        ("epochs", 0),
        ("epochs", 3),  # below warmup_epochs
        ("steps_per_epoch", 0),
        ("calibration_epochs", 0),
        ("warmup_epochs", 3),  # below calibration_epochs
        ("devices", -1),
        ("steps_per_dispatch", -1),
        ("log_every_steps", 0),
        ("data.source", "npy"),
        ("data.mean", (0.5, 0.5, 0.5)),  # without data.std
        ("data.mean", ("0.5",)),
        ("data.std", (1.0,)),
        ("quant.weight_bits", 0),
        ("quant.weight_bits", 9),
        ("quant.activation_bits", 33),
        ("quant.overrides", ("stem_conv",)),
        ("quant.overrides", ("stem_conv=w9",)),
        ("quant.overrides", (8,)),
        ("game.method", "adadqf"),
        ("game.kl_reduction", "element"),
        ("game.margin_weight", -1.0),
        ("game.alpha_ds", -0.1),
        ("game.alpha_as", float("nan")),
        ("game.beta", -1.0),
        ("game.gamma", -1.0),
        ("game.gamma", float("inf")),
        ("game.lambda_l", 0.9),  # above lambda_u
        ("game.lambda_l", -0.1),
        ("game.lambda_u", 1.1),
        ("game.temperature", 0.0),
        ("generator.learning_rate", 0.0),
        ("generator.beta1", 1.0),
        ("generator.beta2", -0.1),
        ("generator.decay", 0.0),
        ("generator.milestones", (0, 10)),
        ("student.learning_rate", -1e-4),
        ("student.momentum", 1.0),
        ("student.weight_decay", -1e-4),
        ("student.decay", 0.0),
        ("student.milestones", (10, 10)),
        ("student.milestones", ("10",)),
        ("evaluation.every_epochs", 0),
        ("evaluation.subset", -1),
        ("precision.student", "bfloat16"),
        ("evaluation.batch_size", 0),
        ("evaluation.generated_images", 0),
        ("checkpoint.every_seconds", -1.0),
        ("checkpoint.every_steps", -1),
    ],
)
def test_validate_names_the_field_and_its_value(field, value):
    validate(default_config())
    with pytest.raises(ConfigError) as error:
        validate(changed(field, value))
    message = str(error.value)
    assert field in message
    assert repr(value).strip("(),") in message


def test_validate_wants_a_path_for_a_source():
    with pytest.raises(ConfigError, match=r"needs data\.path"):
        validate(changed("data.source", "npz"))


def test_validate_wants_positive_deviations():
    config = changed("data.mean", (0.5,) * 3)
    config.data.std = (0.5, 0.0, 0.5)
    with pytest.raises(ConfigError, match=r"data\.std must be positive"):
        validate(config)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda config: config.game.__delattr__("beta"), "lacks game.beta"),
        (lambda config: config.game.__setattr__("betta", 1.0), "unknown field 'game.betta'.*beta"),
        (lambda config: config.__setattr__("quant", None), "unknown field 'quant'"),
    ],
)
def test_validate_wants_exactly_the_known_fields(break_it, message):
    config = default_config().unlock()
    break_it(config)
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("game.method", "adafdq", "did you mean adadfq"),
        ("game.method", "zeroq", "the nearest gdfq, adadfq"),
        ("game.kl_reduction", "batches", "did you mean batch?"),
        ("precision.teacher", "bfloat", "did you mean bfloat16 or float32?"),
        ("precision.generator", "float16", "did you mean bfloat16 or float32?"),
    ],
)
def test_unknown_method_names_the_nearest(field, value, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(changed(field, value))


def test_a_run_that_is_too_short_is_told_what_to_set():
    said = "shorten both, as with --config.calibration_epochs=1 --config.warmup_epochs=1."
    with pytest.raises(ConfigError, match=f"epochs=3 ends before the student learns.*{said}"):
        validate(changed("epochs", 3))


@pytest.mark.parametrize("name", ["alpha_ds", "alpha_as", "lambda_l", "lambda_u"])
def test_a_constant_that_a_method_lacks_is_refused(name):
    config = changed("game.method", "gdfq")
    validate(config)
    config.game[name] = 0.25
    with pytest.raises(ConfigError, match=f"game.{name}=0.25 means nothing to gdfq"):
        validate(config)


def test_another_optimizer_is_told_without_what_follows_from_it():
    told = differences(default_config(), changed("student.optimizer", "adam"))
    assert told == "student.optimizer was None, is 'adam'"
    adam = changed("student.optimizer", "adam")
    longer = changed("student.optimizer", "adam")
    longer.epochs = 500
    assert differences(adam, longer) == "epochs was 400, is 500"


def test_unknown_source_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean npz"):
        validate(changed("data.source", "npzz"))


EXEMPT = {
    "export": "onnx",
    "epochs": 500,
    "devices": 2,
    "remat": True,
    "steps_per_dispatch": 10,
    "log_every_steps": 7,
    "teacher.path": "elsewhere",
    "data.source": "npz",
    "data.path": "elsewhere",
    "data.labels": "elsewhere",
    "samples.images": "elsewhere",
    "evaluation.every_epochs": 5,
    "evaluation.subset": 5,
    "evaluation.batch_size": 5,
    "evaluation.generated_images": 5,
    "checkpoint.every_seconds": 5.0,
    "checkpoint.every_steps": 5,
}


def _differing(field, value, **others):
    configs = default_config(), changed(field, value)
    for config in configs:
        config.student.update(others)
    before, now = map(identity, configs)
    return {name for name in before | now if before.get(name) != now.get(name)}


@pytest.mark.parametrize(("field", "value"), EXEMPT.items())
def test_identity_ignores_where_and_how_long(field, value):
    assert _differing(field, value) == set()


def _other(value):
    match value:
        case tuple():
            return (*value, 7)
        case str():
            return value + "x"
        case bool():
            return not value
    return value + 1


def test_identity_sees_every_other_field():
    flat = {
        ".".join(path): value
        for path, value in _leaves(default_config().to_dict())
        if ".".join(path) not in EXEMPT
    }
    assert len(flat) > 20
    del flat["student.relative_rate"], flat["student.optimizer"]
    for field, value in flat.items():
        if value is None:
            value = FIELDS[field].kind.type()
        assert _differing(field, _other(value)) == {field}


def test_the_length_of_a_game_is_identity_where_the_rate_falls_over_it():
    assert _differing("student.optimizer", "adam") == {
        "epochs",
        "student.optimizer",
        "student.relative_rate",
    }
    for field, value in (("epochs", 7), ("student.relative_rate", 1.0)):
        assert _differing(field, value, optimizer="adam") == {field}
        assert _differing(field, value, optimizer="sgd") == set()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant.ranges": "max"}, "unknown quant.ranges 'max': did you mean minmax"),
        ({"student.optimizer": "adamw"}, "unknown student.optimizer 'adamw': did you mean adam"),
        ({"samples.procedural": -1}, "samples.procedural must be at least 0, not -1"),
        ({"samples.cutmix": -0.5}, "samples.cutmix must be between 0 and 1, not -0.5"),
        ({"samples.cutmix": 1.5}, "samples.cutmix must be between 0 and 1, not 1.5"),
        ({"student.relative_rate": 0.0}, "student.relative_rate must be positive"),
        (
            {"quant.learned_ranges": True},
            "quant.learned_ranges=True needs student.optimizer='adam'",
        ),
        (
            {"game.method": "adadfq_plus", "student.optimizer": "sgd"},
            "quant.learned_ranges=True needs student.optimizer='adam'",
        ),
        ({"samples.cutmix": 0.5}, "samples.procedural=0 draws none"),
        (
            {"game.method": "gdfq", "samples.procedural": 1},
            "samples.procedural=1 does not go with gdfq",
        ),
        (
            {"samples.images": "own"},
            "samples.images='own' stand in the place of procedural images, and "
            "samples.procedural=0 has none",
        ),
        (
            {"game.method": "gdfq", "samples.images": "own", "samples.procedural": 1},
            "samples.procedural=1 does not go with gdfq",
        ),
        ({"samples.images_share": 1.5}, "samples.images_share must be between 0 and 1, not 1.5"),
        (
            {
                "game.method": "adadfq_plus",
                "samples.images": "./own",
                "data.source": "folder",
                "data.path": "own",
            },
            "samples.images and data.path are both './own', but a student is not measured on",
        ),
    ],
)
def test_switches_that_exclude_each_other(fields, message):
    config = default_config()
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate(config)


def _leaves(tree, path=()):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def test_identity_survives_json():
    config = changed("quant.overrides", ("stem_*=w8a8",))
    assert identity(json.loads(to_json(config))) == identity(config)


@pytest.mark.parametrize("field", FIELDS.values(), ids=lambda field: field.name)
def test_defaults_hold_and_other_types_do_not(field):
    field.check(field.default)
    with pytest.raises(ConfigError, match=rf"{field.name} must be .*, not "):
        field.check(object())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_files_load_with_and_without_bits(path):
    default, other = from_shell(f"--config={path}"), from_shell(f"--config={path}:w3a5")
    for config in (default, other):
        validate(config)
        assert config.is_locked
    assert (other.quant.weight_bits, other.quant.activation_bits) == (3, 5)
    other.quant = default.quant
    assert to_json(other) == to_json(default)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("bits", ["w9a4", "w4", "4"])
def test_config_files_refuse_wrong_bits(path, bits):
    with pytest.raises(ConfigError):
        from_shell(f"--config={path}:{bits}")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("quant.overrides", "('stem_*=w8a8',)", ("stem_*=w8a8",)),
        ("quant.overrides", "('stem_*=w8a8','classifier=w8')", ("stem_*=w8a8", "classifier=w8")),
        ("student.milestones", "(1, 2)", (1, 2)),
        ("generator.milestones", "()", ()),
        ("data.mean", "(0.5,0.4,0.3)", (0.5, 0.4, 0.3)),
        ("teacher.path", "a b.th", "a b.th"),
        ("teacher.architecture", "resnet56_cifar", "resnet56_cifar"),
        ("teacher.digest", "123", "123"),
        ("data.path", "x.npz", "x.npz"),
        ("game.gamma", "2", 2.0),
        ("quant.learned_ranges", "True", True),
        ("quant.learned_ranges", "False", False),
        ("samples.procedural", "2", 2),
        ("seed", "7", 7),
    ],
)
def test_fields_are_set_from_the_shell(field, text, value):
    config = from_shell(f"--config={FILES[0]}", f"--config.{field}={text}")
    section, _, name = field.rpartition(".")
    found = (config[section] if section else config)[name]
    assert found == value
    assert type(found) is type(value)


def test_a_configuration_can_be_read_and_slips_are_told_first():
    config = default_config("w4a2")
    lines = repr(config).splitlines()
    assert "quant.activation_bits       2" in lines
    assert "game.lambda_l               left open" in lines
    assert not any("!!python" in line for line in lines)
    assert str(config.game).startswith("alpha_as ")
    for section, name, hint in (
        (config, "epoch", "there is no field 'epoch': did you mean epochs"),
        (config, "method", "did you mean game.method"),
        (config.game, "metod", "did you mean game.method"),
    ):
        with pytest.raises(AttributeError) as raised:
            setattr(section, name, 3)
        assert hint in str(raised.value)
        assert len(str(raised.value)) < 120
    config.epochs = 3
    copied = config.copy_and_resolve_references()
    assert repr(copied) == repr(config)
