"""The report of a run or a sweep: what happened and whether it went well, on one page without a
network.

The verb is `adadfq report`. `write` puts files where they belong; `run_report` and `sweep_report`
put the page together from `run_figures` and `sweep_figures` (`drawing` is what both share) and
`page`, the HTML. `history` reads what was logged, `layer_errors` measures the student's layers,
`diagnosis` says what keeps it from its teacher, `findings` says in words what is wrong, `repeat`
is the command that plays the run again, and `tensorboard` writes events.
"""
