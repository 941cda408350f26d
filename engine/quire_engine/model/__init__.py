"""What a model is: its description, its files, its tokenizer, and the one decoder that runs it."""
