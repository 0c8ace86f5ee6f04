"""The paper's game: a step that trains two players, generator and student, on a batch of images.

`step` is that step. `state` is what it changes, `rules` what it is compiled for; `methods` choose
the `losses`, `optimizers` give the updates and their rates, `programs` compiles several steps.
`procedural`, `given` and `cutmix` make images from which only the student learns, by the random
numbers of `draws`; `learned_ranges` are quantization ranges that the student learns.
"""
