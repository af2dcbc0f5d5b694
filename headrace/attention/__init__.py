"""Paged attention over the KV cache: one ``Backend`` interface, several implementations, chosen once at start-up.

Owns how queries meet cached keys and values; does not know models, requests or scheduling.
"""
