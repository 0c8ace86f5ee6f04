"""What a machine does: the `parts` to measure, a time `budget` for them, the `facts` of the
machine, the `session` that measures and writes down, and the `tables` of what it found.
"""
