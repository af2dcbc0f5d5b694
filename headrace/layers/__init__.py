"""The building blocks of models, written for one device; each declares how it may be split. Knows no process ranks."""
