"""How fast a step is, here (`benchmark`, its `parts`, beside PyTorch's `torch_opponent`, in a
`table`) and on devices that are not here (`precompile`).
"""
