"""The API group quire.dev: an LLMDeployment's spec and status as Python values."""
