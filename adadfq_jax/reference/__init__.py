"""An independent PyTorch transcription of AdaDFQ, for parity tests and as a speed comparator.

Needs the extra ``[torch]``.
"""
