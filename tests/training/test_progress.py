"""What a person sees of a run."""

from adadfq_jax.training.progress import Progress


def test_paths_are_shown_as_they_are(capsys):
    """Brackets would be colours to rich, or an error."""
    Progress(10).say("a run in runs/[seed]/x[/a]")
    assert "a run in runs/[seed]/x[/a]" in capsys.readouterr().err
