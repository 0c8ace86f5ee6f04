"""Configurations by name: `--config=NAME:BITS` takes a file of this folder, from any place.

Each file begins with its command and the paper's numbers, and has `get_config(bits)`.
"""
