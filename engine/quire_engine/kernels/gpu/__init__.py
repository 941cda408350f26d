"""Kernels in Triton, each with its meaning in plain torch beside it.

A kernel's wrapper launches from static shapes alone and never waits for the GPU, so that all of
them can be captured in CUDA graphs. Without a GPU they run in Triton's interpreter
(`TRITON_INTERPRET=1`), which is how they are tested.
"""
