"""The engine: request life cycle, scheduler, KV blocks, step loop, processes. Knows only token ids, no text."""
