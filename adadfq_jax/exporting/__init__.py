"""Students as files that run without this package, each proved equal before it is kept.

`export` writes and `load` opens; `quantized` holds a network's integers. The formats are
`integers` (with `numpy_reader`, a program that needs NumPy alone), `onnx_qdq`, `stablehlo` and
`pytorch`, whose files have a `description`. `verification` compares, `integer_check` computes in
integers. What each kind of node is in ONNX is a table, `onnx_operations` (with `onnx_layers`,
`onnx_integer_layers` and `onnx_writer`), and so it is in `numpy_reader`. What runs ONNX is in
`engines`. The formats' names and suffixes are `EXPORT_FORMATS`
in `config/fields.py`, where the checks of a configuration see them.
"""
