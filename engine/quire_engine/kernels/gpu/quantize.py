"""8-bit floating point (e4m3) with scales: a number is its 8 bits times its scale.

Legend: T tokens, I inputs, G groups of GROUP inputs.
"""

FP8_MAX = 448.0
"""Largest number of e4m3."""
