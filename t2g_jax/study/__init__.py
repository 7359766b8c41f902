"""Studies: methods side by side on several tasks and seeds, at equal numbers of tokens."""
