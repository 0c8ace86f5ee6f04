"""A run's configuration.

`fields` is the table of its fields, of certain `kinds` and within `bounds`, and `reference` writes
it out for people. `checks` are of several fields; `identity` is what may not change when a run is
resumed; `recipes` are the paper's settings by network; `resolve` fills in what follows from a
teacher. `presets` are the configurations that have a name.
"""
