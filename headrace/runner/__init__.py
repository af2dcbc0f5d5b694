"""Executes plans: persistent device rows, the batch of a step, memory sizing, the sampler. Knows no text or HTTP."""
