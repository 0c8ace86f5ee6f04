"""Grids of a sweep, as they are written."""

import pytest

from adadfq_jax.config.fields import default_config
from adadfq_jax.errors import ConfigError
from adadfq_jax.sweeps.grid import parse_grid, plan


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("seed=0..4", {"seed": (0, 1, 2, 3, 4)}),
        ("seed=7", {"seed": (7,)}),
        ("seed=0..2,8,5..6", {"seed": (0, 1, 2, 8, 5, 6)}),
        ("quant.weight_bits=3,4", {"quant.weight_bits": (3, 4)}),
        ("bits=w3a3,w4a8", {"bits": ("w3a3", "w4a8")}),
        ("game.alpha_ds=0,0.2", {"game.alpha_ds": (0.0, 0.2)}),
        ("student.learning_rate=1e-4,1", {"student.learning_rate": (1e-4, 1.0)}),
        ("game.method=gdfq,adasg", {"game.method": ("gdfq", "adasg")}),
        ("teacher.path=../a b.th,c.th", {"teacher.path": ("../a b.th", "c.th")}),
        ("student.milestones=(1,2),(3,),()", {"student.milestones": ((1, 2), (3,), ())}),
        (
            "quant.overrides=('stem_*=w8a8','classifier=w8'),()",
            {"quant.overrides": (("stem_*=w8a8", "classifier=w8"), ())},
        ),
        (" seed = 0..1 , 3 ; bits=w3a3 ", {"seed": (0, 1, 3), "bits": ("w3a3",)}),
    ],
)
def test_values_have_their_fields_types(text, grid):
    found = parse_grid(text)
    assert found == grid
    for key, values in grid.items():
        assert [type(value) for value in found[key]] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the grid has an entry ''; write --grid="),
        ("seed=0..1;", "the grid has an entry ''"),
        ("seed", "the grid has an entry 'seed'"),
        ("=3", "the grid has an entry '=3'"),
        ("sed=1", "unknown field 'sed': did you mean seed"),
        ("game.alphads=1", "did you mean game.alpha_ds"),
        ("seed=", "seed the value '', which is not an integer, or a range"),
        ("seed=1,", "seed the value ''"),
        ("seed=1,,2", "seed the value ''"),
        ("seed=1.5", "seed the value '1.5'"),
        ("seed=4..0", "seed the value '4..0', which is not an integer, or a range such as 0..4"),
        ("seed=0..", "seed the value '0..'"),
        ("seed=0..1..2", "seed the value '0..1..2'"),
        ("seed=0...2", "seed the value '0...2'"),
        ("game.gamma=0..1", "game.gamma the value '0..1', which is not a finite number"),
        ("game.gamma=nan", "game.gamma the value 'nan'"),
        ("student.milestones=1,2", "milestones the value '1', which is not a tuple"),
        ("student.milestones=(1,", "milestones the value '(1,'"),
        ("game.method=", "game.method the value '', which is not text"),
        ("seed=1,1", "seed the value 1 twice"),
        ("seed=0..2,1", "seed the value 1 twice"),
        ("game.gamma=1,1.0", "game.gamma the value 1.0 twice"),
        ("bits=w3a3,w3a3", "bits the value 'w3a3' twice"),
        ("seed=0;seed=1", "names seed twice"),
        ("bits=w3", "w4a4"),
        ("bits=w9a4", "between 1 and 8, not 9"),
        ("bits=w3a3;quant.weight_bits=3", "and one of these as well"),
    ],
)
def test_bad_grids_are_one_sentence(text, message):
    with pytest.raises(ConfigError) as error:
        parse_grid(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "the grid is empty"),
        ({"sed": (1,)}, "did you mean seed"),
        ({"seed": ()}, "seed no value"),
        ({"seed": ("1",)}, "wrong type"),
        ("seed=-1", "seed must be at least 0 and below 2^32, not -1"),
        ("game.method=gdfq,adagf", "unknown game.method 'adagf'"),
        ("game.method=adadfq,gdfq;game.alpha_ds=0.1", "means nothing to gdfq"),
        ("quant.weight_bits=0", "between 1 and 8, not 0"),
    ],
)
def test_every_game_is_checked(grid, message):
    with pytest.raises(ConfigError) as error:
        plan(default_config(), grid)
    assert message in str(error.value)


def test_a_plan_has_all_combinations_with_the_compiled_step_changing_last():
    points = plan(default_config(), "seed=0..1;bits=w3a3,w4a8;game.method=gdfq,adadfq")
    assert [point.name for point in points] == [
        f"{method}_{bits}_seed{seed}"
        for method in ("gdfq", "adadfq")
        for bits in ("w3a3", "w4a8")
        for seed in (0, 1)
    ]
    for point in points:
        config = point.config
        assert point.values == {
            "game.method": config.game.method,
            "bits": f"w{config.quant.weight_bits}a{config.quant.activation_bits}",
            "seed": config.seed,
        }


def test_a_game_has_one_name_and_no_other_has_it():
    name = {p.name for p in plan(default_config(), "seed=3;game.gamma=0.5;bits=w3a3")}
    assert name == {"game.gamma=0.5_w3a3_seed3"}
    assert name == {p.name for p in plan(default_config(), "bits=w3a3;game.gamma=0.5;seed=3")}
    points = plan(default_config(), "teacher.path=a/b,a-b,a:b")
    assert len({point.name for point in points}) == 3
    for point in points:
        assert "/" not in point.name


def test_what_the_grid_does_not_name_is_the_configurations(small_config):
    small_config.game.gamma = 0.5
    (point,) = plan(small_config, {"seed": (5,)})
    assert (point.config.seed, point.config.game.gamma, point.config.epochs) == (5, 0.5, 4)
    assert small_config.seed == 0
