"""Sweeps of many runs: a `grid` says which runs, `sweep` trains them in any number of processes,
and `table` compares their results. A run of a sweep is called a game.
"""
