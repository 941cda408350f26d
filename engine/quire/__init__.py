"""The public face of Quire: `from quire import LLM, SamplingParams`, and the `quire` command."""
