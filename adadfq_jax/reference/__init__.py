"""An independent PyTorch transcription of AdaDFQ and GDFQ, for parity tests and benchmarks.

A method that is added in `adadfq_jax.game` gets a second form of its losses here. Needs the extra
``[torch]``.
"""
