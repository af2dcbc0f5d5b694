"""What the kinds of benchmarks share: flags that several have, how a figure is printed, the file of results."""

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.bench.files import write_json, writing
from headrace.bench.numbers import from_zero, positive
from headrace.cli.main import SIGINT_EXIT
from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options
from headrace.errors import HeadraceError
from headrace.files import check_directory

if TYPE_CHECKING:
    from headrace.frontend.llm import LLM
    from headrace.types import SamplingParams


def add_engine(parser: FlagParser) -> None:
    """The engine's own flags, and those of every measurement of one in this process."""
    add_options(parser, ENGINE_GROUPS)
    parser.add_argument("--n", type=positive, default=1, metavar="N", help="Sequences of each request.")
    parser.add_argument("--temperature", type=from_zero, default=1.0, metavar="X", help="Of the samples; 0 is greedy.")
    parser.add_argument("--disable-detokenize", action="store_true", help="Make no text of the tokens.")
    add_output(parser)


def add_output(parser: FlagParser) -> None:
    parser.add_argument("--output-json", metavar="FILE", help="Write all figures there.")


def check_output(arguments: argparse.Namespace) -> None:
    """Raise ConfigError if the file can't be written; before the measurements, not after them."""
    if arguments.output_json:
        check_directory(Path(arguments.output_json).parent, "--output-json")


def add_counts(parser: FlagParser, *rows: tuple[tuple[str, ...], Callable[[str], int], int, str]) -> None:
    """Flags that are numbers, each row with its spellings, how it is read, its default and what it is."""
    for flags, kind, default, help in rows:
        parser.add_argument(*flags, type=kind, default=default, metavar="N", help=help)


@contextmanager
def engine(options: dict[str, Any]) -> "Iterator[LLM]":
    """An engine to measure. Raises HeadraceError if there isn't memory enough, for it or for what is measured."""
    from headrace.frontend.llm import LLM

    try:
        yield LLM(**options)
    except (MemoryError, RuntimeError) as error:  # torch has the latter for the host's memory and a GPU's
        if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        reason = " ".join(str(error).split())[:150]
        flags = "--max-num-seqs, --max-num-batched-tokens, --max-model-len or the batch"
        raise HeadraceError(f"Memory ran out ({reason}…): lower {flags}.") from None


def sampling(arguments: argparse.Namespace, options: dict[str, Any]) -> "SamplingParams":
    """How all requests are sampled: as many tokens as they ask for."""
    from headrace.types import SamplingParams

    detokenize = not (arguments.disable_detokenize or options.get("skip_tokenizer_init"))
    return SamplingParams(n=arguments.n, temperature=arguments.temperature, detokenize=detokenize, ignore_eos=True)


def report(result: dict[str, Any], lines: list[str], path: str | None) -> int:
    """Print ``lines``, and write ``result`` as JSON to ``path``. Returns the exit code."""
    print(*lines, sep="\n")
    if result.get("interrupted"):
        print("Interrupted: these are the figures so far.")
    if path:
        with writing(f"--output-json {path}"):
            write_json(Path(path), result)
    return SIGINT_EXIT if result.get("interrupted") else 0


def used(result: dict[str, Any]) -> str:
    """The shares of the device's bandwidth and FLOPs that went into what the model needs at least."""
    return f"MBU {100 * result['mbu']:.0f}%, MFU {100 * result['mfu']:.0f}%"


def last_lines(result: dict[str, Any]) -> list[str]:
    """The ceilings that limits and shares refer to, and where profiles are."""
    ceilings = result["ceilings"]
    return [
        f"Measured on {result['device']}: reads {ceilings['bytes_per_second'] / 1e9:,.0f} GB/s, multiplies "
        f"{ceilings['flops_per_second'] / 1e12:,.2f} TFLOP/s in {result['dtype']}",
        *(f"Profile: {path}" for path in result.get("profile", [])),
    ]
