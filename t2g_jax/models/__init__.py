"""Components with parameters: the decoder and the heads that read its hidden states."""
