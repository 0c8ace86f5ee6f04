"""The quantizers of the GDFQ protocol: `codes` of a range, `ranges` and how they are found, `bits`
by layer.

They are written here and not taken from a library: qwix's asymmetric bounds know int4, 8 and 16
bits only, and the protocol has 1 to 8 bits, channels whose range excludes 0, and bit-widths that
are arrays of a compiled program.
"""
