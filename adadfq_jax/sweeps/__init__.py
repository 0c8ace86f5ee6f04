"""Many runs: `grid` reads which, `sweep` plays them in any number of processes, `table` compares
them.
"""
