"""Bit-widths, written and read, and which layers they are of."""

import numpy as np
import pytest

from adadfq_jax.errors import ConfigError
from adadfq_jax.models import registry
from adadfq_jax.quantization.bits import (
    assign_bits,
    named_file,
    overrides_in_words,
    parse_bits,
    parse_override,
)


@pytest.fixture(scope="module")
def layers():
    return registry.initial_variables(registry.build("resnet8_cifar", 10), 8)["bits"]


def _by_name(bits):
    return {
        name: {kind: int(value) for kind, value in layer.items()}
        for name, layer in _layers(bits, "")
    }


def _layers(tree, prefix):
    for name, child in tree.items():
        if isinstance(next(iter(child.values())), dict):
            yield from _layers(child, f"{prefix}{name}/")
        else:
            yield prefix + name, child


@pytest.mark.parametrize(("text", "bits"), [("w4a4", (4, 4)), ("w1a8", (1, 8)), ("w8a2", (8, 2))])
def test_bits_are_read(text, bits):
    assert parse_bits(text) == bits


@pytest.mark.parametrize("text", ["", "4", "w4", "a4", "w4a", "a4w4", "w4a4 ", "w-1a4"])
def test_malformed_bits_are_refused(text):
    with pytest.raises(ConfigError, match="written like w4a4"):
        parse_bits(text)


@pytest.mark.parametrize(
    ("text", "what", "value"),
    [("w0a4", "weight", 0), ("w9a4", "weight", 9), ("w33a4", "weight", 33), ("w4a9", "act", 9)],
)
def test_bits_outside_1_to_8_are_refused(text, what, value):
    with pytest.raises(ConfigError, match=rf"{what}.* between 1 and 8, not {value}\."):
        parse_bits(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stem_*=w8a7", ("stem_*", {"weight": 8, "activation": 7})),
        ("classifier=w8", ("classifier", {"weight": 8})),
        ("*/relu?=a2", ("*/relu?", {"activation": 2})),
    ],
)
def test_override_is_read(text, expected):
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["stem", "stem=", "=w8", "stem=8", "stem=a8w8", "a=b=w8", ""])
def test_malformed_override_is_refused(text):
    with pytest.raises(ConfigError, match="takes entries like"):
        parse_override(text)


@pytest.mark.parametrize("text", ["stem_conv=w0", "stem_relu=a9", "*=w33a4"])
def test_override_outside_1_to_8_is_refused_and_named(text):
    with pytest.raises(ConfigError) as error:
        parse_override(text)
    assert text in str(error.value)


def test_every_layer_gets_the_bits_of_its_kind(layers):
    bits = _by_name(assign_bits(layers, 3, 5, ()))
    assert bits["stem_conv"] == {"weight": 3}
    assert bits["stage1_block1/relu1"] == {"activation": 5}
    assert sum("weight" in layer for layer in bits.values()) == 8  # 7 convolutions, 1 dense
    assert sum("activation" in layer for layer in bits.values()) == 7


def test_first_and_last_layer_at_8_bit(layers):
    bits = _by_name(assign_bits(layers, 4, 4, ("stem_*=w8a8", "classifier=w8")))
    changed = {name for name, layer in bits.items() if 8 in layer.values()}
    assert changed == {"stem_conv", "stem_relu", "classifier"}
    assert {value for name in bits.keys() - changed for value in bits[name].values()} == {4}


@pytest.mark.parametrize(("order", "expected"), [(1, 2), (-1, 7)])
def test_the_later_override_wins(layers, order, expected):
    overrides = ("stage1_*=w7", "stage1_block1/conv1=w2")[::order]
    bits = _by_name(assign_bits(layers, 4, 4, overrides))
    assert bits["stage1_block1/conv1"]["weight"] == expected
    assert bits["stage1_block1/conv2"]["weight"] == 7


@pytest.mark.parametrize(
    ("override", "hint"),
    [("stem_cnv=w8", "stem_conv"), ("clasifier=w8", "classifier"), ("stem_conv=a8", "stem_conv")],
)
def test_override_that_matches_no_layer_names_the_nearest(layers, override, hint):
    with pytest.raises(ConfigError) as error:
        assign_bits(layers, 4, 4, (override,))
    message = str(error.value)
    assert "matches no layer" in message
    assert override in message
    assert hint in message.partition("matches no layer")[2]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("@bits.json", "bits.json"),
        ("@runs/bits=w3a3/bits.json", "runs/bits=w3a3/bits.json"),
        ("@first=w8a8", None),
        ("bits.json", None),
        ("@bits.txt", None),
    ],
)
def test_a_file_is_told_from_a_role(text, path):
    assert named_file(text) == path


def test_many_overrides_are_not_all_named():
    assert overrides_in_words(()) == ""
    assert overrides_in_words(["a=w8", "b=w7"]) == "a=w8, b=w7"
    found = overrides_in_words([f"layer{index}=w8" for index in range(39)])
    assert found == "layer0=w8, layer1=w8, layer2=w8, and 36 other layers"


def test_bits_are_data_of_one_type(layers):
    leaves = [
        value for layer in _layers(assign_bits(layers, 4, 4, ()), "") for value in layer[1].values()
    ]
    assert {(value.dtype, value.shape) for value in leaves} == {(np.dtype(np.int32), ())}
