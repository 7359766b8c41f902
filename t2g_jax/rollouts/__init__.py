"""What a policy does with prompts: turns, and conversations of several."""
