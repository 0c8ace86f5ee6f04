"""The reference of fields, made from `fields.FIELDS`: for `--help`, and for configs/README.md.

  python -m adadfq_jax.config.reference configs/README.md

writes the section of fields of that file anew, and leaves all others.
"""

import sys
from pathlib import Path

from adadfq_jax.config.fields import FIELDS, Field, Filler
from adadfq_jax.game.methods import METHODS

HEADING = "## Fields"

_INTRODUCTION = """\
Set a field with `--config.FIELD=VALUE`, or `config.FIELD = VALUE` in Python. All are described in
`adadfq_jax/config/fields.py`, from which this table is made.

*Left open*: who fills the field in where it is None (of the teacher's: None, 0 or empty). The
network fills in its fields where a configuration file empties them (`configs/teacher.py` and those
for ImageNet); after "the method" stands what `adadfq` takes, unless the network has a setting.
*On resume*: a fixed field is part of a run's identity, and a workdir whose run has another value is
refused. "May change with sgd": fixed where `student.optimizer` is adam, whose rate falls over the
whole schedule.
"""
_COLUMNS = ("field", "default", "must be", "meaning", "left open", "on resume")


def fields_markdown() -> str:
    """Returns the section of configs/README.md that describes every field."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, FIELDS.values())]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{HEADING}\n\n{_INTRODUCTION}\n{table}\n"


def fields_help() -> str:
    """Returns the fields as `--help` lists them: name, meaning, default, and what they must be."""
    width = max(map(len, FIELDS)) + 2
    return "\n".join(
        f"  {field.name:<{width}}{field.meaning} ({_default(field)}; {field.right})"
        for field in FIELDS.values()
    )


def with_fields(document: str) -> str:
    """Returns a document with its section of fields written anew, at its end where it has none."""
    before, heading, rest = document.partition(f"{HEADING}\n")
    if not heading:
        return f"{before.rstrip()}\n\n{fields_markdown()}".lstrip()
    _, heading, after = rest.partition("\n## ")
    return f"{before}{fields_markdown()}{heading}{after}"


def _row(field: Field) -> tuple[str, ...]:
    filler = field.filled_by.value if field.filled_by else ""
    if field.filled_by is Filler.METHOD:
        filler += f": `{METHODS['adadfq'].defaults[field.name]}`"
    resume = field.resume.value
    return f"`{field.name}`", f"`{field.default!r}`", field.right, field.meaning, filler, resume


def _default(field: Field) -> str:
    if field.default is None and field.filled_by:
        return f"by default from {field.filled_by.value}"
    return f"default {field.default!r}"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m adadfq_jax.config.reference configs/README.md")
    target = Path(sys.argv[1])
    target.write_text(with_fields(target.read_text() if target.exists() else ""))
