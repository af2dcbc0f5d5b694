"""``python -m headrace`` is the same as ``headrace``."""

from headrace.cli.main import console

if __name__ == "__main__":
    console()
