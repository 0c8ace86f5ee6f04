"""The command line: verbs to functions, exceptions to one sentence and an exit code.

`main` runs a verb of `verbs`, whose flags `table` describes and `flags` reads; `process` is about
signals, warnings and the cache, `streams` about output, `evaluate` is behind the verb of that
name, and `ending` is what `quantize` says at its end. Nothing else ends the process, listens to
signals or configures JAX.
"""
