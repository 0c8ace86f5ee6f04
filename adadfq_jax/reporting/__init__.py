"""The report of a run or a sweep: results, figures and problems on one HTML page that loads nothing
from a network.

`write` is the verb `adadfq report`, and writes the files. For a run, `run_facts` reads and measures
it, `run_report` makes the page, `run_figures` and `layer_figures` the figures; for a sweep,
`sweep_report` and `sweep_figures` do. `drawing` holds a figure, `page` writes HTML. `history` reads
the log, `layer_errors` measures the quantizers of each layer, `diagnosis` where student and teacher
differ, `findings` puts problems into words, `repeat` gives the command that repeats the run, and
`tensorboard` writes events.
"""
