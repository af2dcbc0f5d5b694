"""``python -m headrace.entrypoints.openai.api_server --model …`` is the same as ``headrace serve …``."""

import sys

from headrace.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["serve", *sys.argv[1:]]))
