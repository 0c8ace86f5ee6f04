"""`python -m adadfq_jax VERB` is the console script `adadfq VERB`."""

from adadfq_jax.cli.main import main

main()
