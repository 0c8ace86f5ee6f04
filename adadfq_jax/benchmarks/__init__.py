"""The speed of a training step on this machine (`benchmark`, with its `parts`, its `timing`, the
`torch_opponent` and the `table`), and forecasts for TPUs and GPUs that are not here (`precompile`,
with the `tpu_slices`, the `gpu_cards`, and `kernels` from the text of compiled programs, `hlo`).
"""
