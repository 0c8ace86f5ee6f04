"""Where arrays lie and programs run: `pmap` (its only user), the `machine` and its `memory`, and
several `processes`, which meet by `rendezvous`.
"""
