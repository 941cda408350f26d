"""Scheduling and the paged KV cache: pure Python, no torch, no clock."""
