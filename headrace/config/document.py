"""Writes docs/options.md from the declarations: ``python -m headrace.config.document [--check] FILE``."""

import json
import sys
from pathlib import Path
from typing import Any

from headrace.config import GROUPS, OPTIONS, Option

HEAD = """\
# Options

Every option of `headrace serve` and of `LLM(...)`; `make docs` generates this page from `headrace/config/`. On the
command line `--max-model-len 8192`, in Python `LLM(max_model_len=8192)`, in a `--config` file `max-model-len: 8192`.

- Underscores may stand for dashes (`--max_model_len`), and a unique beginning of two words or more for the whole
  (`--gpu-memory-util`).
- Sizes take suffixes: `40k` is 40,000, `40K` is 40,960.
- A flag that is true or false has a twin: `--no-enable-prefix-caching`.
- A list takes several words or JSON: `--served-model-name a b`, `--allowed-origins '["*"]'`.
- JSON may be dotted: `--hf-overrides.rope_theta 10000` is `--hf-overrides '{"rope_theta": 10000}'`.
- `--config FILE.yaml` reads flags from a file; those on the command line win.
- `HEADRACE_API_KEY` (or `VLLM_API_KEY`) in the environment stands in for `--api-key`, `VLLM_LOGGING_LEVEL` for
  `--uvicorn-log-level`.

"Needs …" marks what a later version brings: any value but the default (or those named neutral) is refused with one
sentence. "No effect" marks settings of machinery that does not exist here: they are accepted, and the log says so.
"""


def markdown() -> str:
    """The whole page."""
    return HEAD + "".join(section(group, declared) for group, declared in GROUPS.items())


def section(group: str, declared: type) -> str:
    rows = [row(option) for option in OPTIONS.values() if option.group == group]
    table = "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows])
    return f"\n## {group}\n\n{(declared.__doc__ or '').strip()}\n\n{table}\n"


def row(option: Option) -> str:
    facts = option.facts
    flags = ", ".join(f"`{flag}`" for flag in (option.flag, *facts.aliases))
    meaning = facts.help
    if facts.choices:
        meaning += " One of " + ", ".join(f"`{choice}`" for choice in facts.choices) + "."
    if facts.later:
        neutral = ", ".join(f"`{text(value)}`" for value in facts.neutral if value != "")
        meaning += f" Needs {facts.later}." + (f" Neutral: {neutral}." if neutral else "")
    if facts.moot:
        meaning += f" No effect: {facts.moot}."
    return f"| {flags} | {default(option)} | {meaning.replace('|', '&#124;')} |"


def default(option: Option) -> str:
    return "" if option.default in (None, "", [], {}) else f"`{text(option.default)}`"


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(arguments: list[str]) -> int:
    path = Path(arguments[-1])
    if "--check" not in arguments:
        path.write_text(markdown())
        return 0
    if path.is_file() and path.read_text() == markdown():
        return 0
    print(f"{path} is out of date: run `make docs`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
