"""Module paths that vLLM's users start servers by; they lead to ``headrace.cli``."""
