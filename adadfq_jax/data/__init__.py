"""Evaluation sets: real images that measure a network and never train one.

`load` opens one of any source (`npz`, `folder`, `tfds`), `dataset` is what it gives; `images`
become pixels, `labels` tell which class folder is which class, and `prepare` fetches
tensorflow-datasets.
"""
