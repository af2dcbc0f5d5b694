"""What the kinds of benchmarks share: flags that several have, how a figure is printed, the file of results."""

import argparse
import json
from pathlib import Path
from typing import Any

from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options
from headrace.errors import ConfigError


def add_engine(parser: FlagParser) -> None:
    """The engine's own flags, and those of every measurement of one in this process."""
    add_options(parser, ENGINE_GROUPS)
    parser.add_argument("--input-len", "--random-input-len", type=positive, metavar="N", help="Prompt tokens.")
    parser.add_argument("--output-len", "--random-output-len", type=positive, metavar="N", help="Output tokens.")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help="Of the samples; 0 is greedy. [1]")
    parser.add_argument("--disable-detokenize", action="store_true", help="Make no text of the tokens.")
    add_output(parser)


def add_output(parser: FlagParser) -> None:
    parser.add_argument("--output-json", metavar="FILE", help="Write all figures there.")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def sampling(arguments: argparse.Namespace, options: dict[str, Any]) -> dict[str, Any]:
    detokenize = not (arguments.disable_detokenize or options.get("skip_tokenizer_init"))
    return {"temperature": arguments.temperature, "detokenize": detokenize}


def report(result: dict[str, Any], lines: list[str], path: str | None) -> int:
    """Print ``lines``, and write ``result`` as JSON to ``path``. Returns the exit code."""
    print(*lines, sep="\n")
    if path:
        try:
            Path(path).write_text(json.dumps(result, indent=4) + "\n")
        except OSError as error:
            raise ConfigError(f"--output-json {path} can't be written: {error.strerror}.") from None
    return 0


def ceilings_line(result: dict[str, Any]) -> str:
    ceilings = result["ceilings"]
    return (
        f"Measured on {result['device']}: reads {ceilings['bytes_per_second'] / 1e9:,.0f} GB/s, multiplies "
        f"{ceilings['flops_per_second'] / 1e12:,.2f} TFLOP/s in {result['dtype']}"
    )
