"""``headrace plan``: whether a model fits on a device, how much it serves at once, and how fast it can be at best."""

import argparse
import json
from typing import Any

from headrace.bench.numbers import positive
from headrace.cli.parser import FlagParser, add_option, given_options
from headrace.config import OPTIONS, Config
from headrace.errors import ConfigError

TAKEN = (  # the engine's options that a plan depends on
    *("tensor_parallel_size", "pipeline_parallel_size", "quantization", "kv_cache_dtype"),
    *("model", "revision", "hf_token", "download_dir", "trust_remote_code", "hf_overrides", "dtype"),
    *("max_model_len", "allow_long_max_model_len", "disable_sliding_window", "enforce_eager"),
    *("gpu_memory_utilization", "kv_cache_memory_bytes", "cpu_kv_cache_gb", "block_size"),
    *("max_num_batched_tokens", "max_num_seqs"),
)
BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]


def add_arguments(parser: FlagParser) -> None:
    parser.usage = "%(prog)s [MODEL] --device NAME [FLAG …]"
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="Hub id, directory, GGUF file, or a shape.")
    parser.add_argument("--device", metavar="NAME", help="h200, l40s, … or cpu for this machine's.")
    parser.add_argument("--device-spec", metavar="FILE", help="JSON or YAML file that describes another device.")
    parser.add_argument("--batch-size", nargs="+", type=positive, default=BATCHES, metavar="N", help="Requests a step.")
    parser.add_argument("--context", type=positive, metavar="N", help="Tokens of a prompt, and of each in the cache.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    section = parser.add_argument_group("engine")
    for name in TAKEN:
        add_option(section, OPTIONS[name])


def run(arguments: argparse.Namespace) -> int:
    config = Config.planned(load_format="dummy", **given_options(arguments))
    from headrace.bench import devices, roofline

    if bool(arguments.device) == bool(arguments.device_spec):
        raise ConfigError("a plan needs a device: --device, such as h200, or --device-spec with a file.")
    name, spec = arguments.device, arguments.device_spec
    device = devices.device_called(name) if name else devices.device_in(spec)
    result = roofline.plan(roofline.Setting(config, device), arguments.batch_size, arguments.context)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0 if result["fits"] else 1


def show(result: dict[str, Any]) -> None:
    """Print the plan as text, for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    steps = Table("batch", "TPOT", "tokens/s", "weights", "products", "cache", "link", box=box.SIMPLE_HEAD)
    for column in steps.columns:
        column.justify = "right"
    for step in result["decode"]:
        terms = (f"{step[key + '_ms']:.2f}" for key in ("weights", "products", "cache", "link"))
        rate = f"{step['output_tokens_per_second']:,.0f}{'' if step['fits'] else ' *'}"
        steps.add_row(str(step["batch_size"]), f"{step['tpot_ms']:.2f}", rate, *terms)
    console = Console(highlight=False, soft_wrap=True)
    for name, value in facts(result):
        console.print(f"  {name:<22}{value}")
    console.print(f"\n  Limits of a decoding step, ms, {result['context']:,} tokens in each request's cache:")
    console.print(steps)
    if not all(step["fits"] for step in result["decode"]):
        console.print("  * more than the KV cache holds\n")
    prompt = result["prefill"]
    console.print(
        f"  Limit of prefill: {prompt['tokens_per_second']:,.0f} tokens/s, a prompt of {prompt['prompt_tokens']:,} "
        f"tokens in {prompt['ttft_ms']:.1f} ms (products {prompt['products_ms']:.1f}, link {prompt['link_ms']:.1f})"
    )
    if not result["fits"]:
        console.print(f"  It doesn't fit: {remedy(result)}.")
    for note in result["notes"]:
        console.print(f"  Headrace can't run this yet: {note}")


def facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    memory, device = result["memory_per_gpu"], result["device"]
    ranks = result["tensor_parallel_size"] * result["pipeline_parallel_size"]
    each = "" if ranks == 1 else f", {gib(result['weight_bytes_per_gpu'])} on each device"
    room = f"{result['kv_cache_tokens']:,} tokens in {gib(memory['kv_cache_bytes'])} a device"
    if memory["kv_cache_bytes"] < 0:
        room = f"none: {gib(-memory['kv_cache_bytes'])} a device are missing"
    return [
        ("model", f"{result['model']} ({result['architecture']}), {result['parameters'] / 1e9:.3f}B parameters"),
        ("device", f"{ranks} × {device['name']}, {gib(device['memory_bytes'])}"),
        ("weights", f"{gib(result['weight_bytes'])}{each} (quantization {result['quantization']}, {result['dtype']})"),
        ("a step's activations", f"{gib(memory['activation_peak_bytes'])}, graphs {gib(memory['graph_bytes'])}"),
        ("runtime and tables", gib(memory["runtime_bytes"] + memory["table_bytes"])),
        ("KV cache a token", f"{result['kv_bytes_per_token'] / 1024:,.1f} KiB ({result['kv_cache_dtype']})"),
        ("KV cache", room),
        ("concurrency", f"{result['max_concurrency']:.2f} requests of {result['max_model_len']:,} tokens"),
        ("largest context", f"{result['largest_context']:,} tokens"),
    ]


def remedy(result: dict[str, Any]) -> str:
    """What would make the model fit."""
    if result["device"]["type"] == "cpu" and result["largest_context"]:
        return f"use --max-model-len {result['largest_context']} or less, or give the cache more with --cpu-kv-cache-gb"
    more = "more devices (--tensor-parallel-size), larger ones, or weights of fewer bits (--quantization)"
    if 0 < result["largest_context"] < result["max_model_len"]:
        return f"use --max-model-len {result['largest_context']} or less, {more}"
    return f"use {more}"


def gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB"
