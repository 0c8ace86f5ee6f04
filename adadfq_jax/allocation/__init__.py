"""Bit-widths by layer under a budget: measured without data, chosen by an integer program."""
