"""A run's configuration: its `fields`, their `checks`, what makes up its `identity`, the paper's
settings by network (`recipes`), and how all of it follows from a teacher (`resolve`).
"""
