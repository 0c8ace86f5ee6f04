"""The command line: verbs to functions, exceptions to one sentence and an exit code.

`main` runs a verb of `verbs`, whose flags `table` describes and `flags` reads; `process` is about
signals, warnings and the cache, `streams` about output, and `evaluate` is behind the verb of that
name. Nothing else ends the process, listens to signals or configures JAX.
"""
