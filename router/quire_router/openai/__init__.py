"""Requests and responses of OpenAI's API, with vLLM's extra fields. Pure: no I/O."""
