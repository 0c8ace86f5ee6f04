"""What is written another way because a compiler is slow at it, each behind a plain signature:
`convolutions`, `pooling`, `moments` of BatchNorms, and the sum of `gradients` over devices. See
README.md.
"""
