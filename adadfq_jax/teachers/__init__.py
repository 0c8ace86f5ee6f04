"""Teachers: full-precision classifiers, read from files without executing anything in them.

`load` is the way in, `stated` is what a user says beside the file. A PyTorch file goes through
`kinds` (what the file is), `pickles` and `inert` (reading it), `state_dicts` and `parts` (which
part is the network), `recognition` and `naming` (which network it is) and `to_flax`. This
project's own files are `native`; `convert` writes one, also of a network of `packages`.
A `torch_module` is read through its `program`, whose operations `aten` and
`aten_pixels` know.
`normalisation` knows presets, `random_weights` makes teachers that know nothing.
"""
