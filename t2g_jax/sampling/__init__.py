"""Turning a policy into completions: the distribution sampled from, and the decoding loop."""
