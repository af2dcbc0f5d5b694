"""Module paths that scripts written for vLLM start with ``python -m``."""
