"""``headrace generate``: continue prompts in this process, without a server."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.bench.files import unreadable
from headrace.cli.parser import ENGINE_GROUPS, FlagParser, add_options, engine_options_from
from headrace.cli.talk import add_sampling, sampling_of
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.types import RequestOutput


def add_arguments(parser: FlagParser) -> None:
    parser.add_argument("--prompt", nargs="+", action="extend", default=[], metavar="TEXT", help="Prompts to continue.")
    parser.add_argument("--prompt-file", metavar="FILE", help="File with a prompt on each line; - reads stdin.")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="Continuations of each prompt.")
    parser.add_argument("--json", action="store_true", help="Print a JSON object for each prompt, on a line each.")
    add_sampling(parser)
    add_options(parser, ENGINE_GROUPS)


def run(arguments: argparse.Namespace) -> int:
    prompts = prompts_of(arguments)
    options, sampling = engine_options_from(arguments), sampling_of(arguments)
    from headrace.frontend.llm import LLM
    from headrace.types import SamplingParams

    llm = LLM(**options)
    try:
        params = SamplingParams(**(llm.info.default_sampling | sampling | {"n": arguments.n}))
        outputs = llm.generate(prompts, params, use_tqdm=len(prompts) > 1 and sys.stderr.isatty())
    finally:
        llm.shutdown()
    for output in outputs:
        if arguments.json:
            print(json.dumps(as_json(output), ensure_ascii=False))
        elif len(prompts) == 1:
            print("\n\n".join(sequence.text for sequence in output.outputs))
        else:
            print(*(f"{output.prompt}{sequence.text}" for sequence in output.outputs), "", sep="\n")
    return 0


def prompts_of(arguments: argparse.Namespace) -> list[str]:
    """The prompts on the command line and in the file, or else what stdin holds as one prompt."""
    prompts: list[str] = list(arguments.prompt)
    if arguments.prompt_file is not None:
        prompts += [line for line in read(arguments.prompt_file).splitlines() if line.strip()]
    elif not prompts and not sys.stdin.isatty():
        prompts = [text] if (text := sys.stdin.read().removesuffix("\n")) else []  # echo's and a file's last newline
    if not prompts:
        raise ConfigError("there is no prompt: give --prompt, --prompt-file, or text on stdin.")
    return prompts


def read(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, "--prompt-file") from None


def as_json(output: "RequestOutput") -> dict[str, Any]:
    return {
        "prompt": output.prompt,
        "prompt_tokens": len(output.prompt_token_ids),
        "outputs": [
            {"text": sequence.text, "tokens": len(sequence.token_ids), "finish_reason": sequence.finish_reason}
            for sequence in output.outputs
        ],
    }
