"""Tokenizers, record formats and batches."""
