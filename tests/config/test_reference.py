"""The reference of fields in configs/README.md is the one that the table of fields makes."""

from adadfq_jax.config.fields import FIELDS
from adadfq_jax.config.reference import HEADING, fields_help, fields_markdown, with_fields
from tests import ROOT


def test_the_committed_reference_is_the_tables():
    document = ROOT.joinpath("configs", "README.md").read_text()
    assert with_fields(document) == document, (
        "configs/README.md differs from adadfq_jax/config/fields.py; write its section anew with\n"
        "  python -m adadfq_jax.config.reference configs/README.md"
    )
    assert document.count(f"{HEADING}\n") == 1


def test_every_field_has_one_row_of_six_cells():
    rows = [row for row in fields_markdown().splitlines() if row.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(FIELDS)
    assert {row.count("|") for row in rows} == {7}


def test_other_sections_stay():
    before, after = "# Configurations\n\nFiles.\n\n", "\n## Recipes\n\nText.\n"
    whole = f"{before}{fields_markdown()}{after}"
    assert with_fields(f"{before}{HEADING}\n\nold\n{after}") == whole
    assert with_fields(whole) == whole
    assert with_fields(before) == f"{before}{fields_markdown()}"


def test_help_tells_who_fills_in_a_field_and_what_it_must_be():
    lines = {line.split()[0]: line for line in fields_help().splitlines()}
    assert list(lines) == list(FIELDS)
    assert lines["batch_size"].endswith("(default 16; an integer, at least 2)")
    assert lines["student.optimizer"].endswith("(by default from the method; one of sgd, adam)")
