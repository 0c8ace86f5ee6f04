"""The speed of a training step on this machine (`benchmark`, with its `parts`, its `timing`, the
`torch_opponent` and the `table`), and forecasts for TPUs that are not here (`precompile`).
"""
