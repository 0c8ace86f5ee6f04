"""An independent PyTorch transcription of AdaDFQ and GDFQ, for parity tests and to time against.

The twin of a method's losses goes here. Needs the extra ``[torch]``.
"""
