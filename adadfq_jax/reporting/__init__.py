"""The report of a run or a sweep: what happened and whether it went well, on one page without a
network.

The verb is `adadfq report`. `write` puts files where they belong. A run's page is `run_report`,
from what `run_facts` measures; its figures are `run_figures` and `layer_figures`. A sweep's page
is `sweep_report`, its figures `sweep_figures`. All are made with `drawing`, and with `page`, the
HTML. `history` reads what was logged, `layer_errors` measures the student's layers, `diagnosis`
says what keeps it from its teacher, `findings` says in words what is wrong, `repeat` is the
command that plays the run again, and `tensorboard` writes events.
"""
