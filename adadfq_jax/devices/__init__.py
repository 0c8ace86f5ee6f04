"""Devices: programs over several of them (`pmap`), this `machine` and its `memory`, and runs in
several `processes`, which find each other by `rendezvous`.
"""
