"""From logits to tokens: constraints, penalties, truncation, seeded draws and logprobs."""
