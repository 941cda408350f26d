"""Executes plans on a GPU: persistent rows, CUDA graphs, and steps that overlap with the CPU."""
