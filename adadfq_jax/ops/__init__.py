"""Operations in a faster form than the plain one, behind a plain signature, because a compiler is
slow at the plain form: `convolutions`, `pooling`, `moments` of BatchNorms, and the sum of
`gradients` over devices. README.md says how slow.
"""
