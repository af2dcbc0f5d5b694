"""Traces of torch.profiler and Nsight Systems made into tables, and the tools that record them. Knows no engine."""
