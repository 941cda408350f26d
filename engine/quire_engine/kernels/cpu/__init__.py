"""The decoder in C, for processors that multiply bfloat16.

`build.py` compiles `source/` once per machine, `library.py` loads it, `decoder.py` runs models
with it. What it computes is what `model/decoder.py` and `runner/attention.py` compute in torch,
which remain for everything that the C code does not support, and as the reference of its tests.
"""
