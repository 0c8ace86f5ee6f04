"""The game: two players, three phases, and the step that trains both on one batch of images.

`step` is the whole of it, on a `state`, by `rules` and a method's `losses` (`methods`), moved by
`optimizers`; `programs` compiles it. `procedural` images and `cutmix` are for the student alone,
`learned_ranges` belong to the student.
"""
