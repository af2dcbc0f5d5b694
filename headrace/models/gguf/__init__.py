"""GGUF files: reader, the configuration and weights under transformers' names, and the tokenizer inside."""
