"""A run: its work directory, weights, prompts and trainer."""
