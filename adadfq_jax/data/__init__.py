"""Evaluation sets, labelled images that measure a network and never train one; a user's for Q.

`load` opens a set from any source (`npz`, `folder`, `tfds`) as a `dataset`. `images` decodes and
resizes image files, `labels` reads which class folder is which class, and `prepare` downloads sets
of tensorflow-datasets. `unlabelled` reads the images that a user gives a student to learn from.
"""
