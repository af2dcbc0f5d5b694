"""Measures the engine, and says how far each figure is from what the device allows. Uses the public API only."""
