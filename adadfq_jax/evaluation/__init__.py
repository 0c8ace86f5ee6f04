"""Measures of a network: `accuracy` on labelled images, a student's `health` without data, and the
BatchNorm `statistics` of a teacher, which show whether it was read as the right network; and the
comparison with the `original`, where that is given as a PyTorch module.
"""
