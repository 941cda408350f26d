"""Executes a step plan on a device: batch preparation, the forward pass, sampling."""
