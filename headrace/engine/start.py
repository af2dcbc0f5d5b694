"""Builds an engine for a model: the one file here that loads torch. Knows the runner; does not know processes."""

import atexit
import gc
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import headrace.device as devices
from headrace.config import Config, profiler_settings
from headrace.device import GIB
from headrace.engine.core import Engine
from headrace.engine.grammar import Grammars
from headrace.engine.kv_cache import blocks_for
from headrace.engine.scheduler import Limits, Scheduler
from headrace.errors import ConfigError
from headrace.models import source
from headrace.models.source import ModelFiles
from headrace.runner.memory import size_flag
from headrace.runner.profiler import Profiler
from headrace.runner.runner import Runner
from headrace.types import EngineInfo, Progress

if TYPE_CHECKING:
    from llguidance import LLTokenizer

logger = logging.getLogger(__name__)


def build_engine(config: Config, files: ModelFiles, on_progress: Callable[[Progress], None]) -> Engine:
    """Load the model and size everything. Raises ``ConfigError`` if the options can't be met."""
    settings = profiler_settings(config.profiling.profiler_config)
    profiler = Profiler(settings, devices.pick_device(config.model.device)) if settings else None
    runner = Runner(config, files, on_progress)
    facts, layout = runner.facts, runner.layout
    max_model_len = _fitting_length(runner)
    if max_model_len < facts.max_model_len:
        runner.fit(max_model_len)
    runner.capture(on_progress)
    limits = Limits(
        max_num_batched_tokens=facts.max_num_batched_tokens,
        max_num_seqs=facts.max_num_seqs,
        max_model_len=max_model_len,
        long_prefill_token_threshold=config.scheduler.long_prefill_token_threshold if facts.chunked_prefill else 0,
        chunked_prefill=facts.chunked_prefill,
        by_priority=config.scheduler.scheduling_policy == "priority",
    )
    grammars = Grammars(lambda: _vocabulary(config, files, runner), runner.vocab_size, facts.eos_token_ids)
    scheduler = Scheduler(limits, layout, facts.prefix_caching, grammars)
    concurrency = (layout.num_blocks - 1) / _blocks(runner, max_model_len)
    info = EngineInfo(
        architecture=runner.architecture,
        device=devices.describe(runner.device),
        dtype=str(facts.dtype).removeprefix("torch."),
        vocab_size=runner.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=facts.eos_token_ids,
        block_size=layout.block_size,
        num_blocks=layout.num_blocks - 1,
        kv_cache_tokens=int(concurrency * max_model_len),
        max_concurrency=concurrency,
        default_sampling=facts.default_sampling,
        ledger=runner.ledger.entries,
        cost=runner.cost,
        hidden_size=runner.model.spec.dim,
        **runner.purpose(),
    )
    logger.info("GPU KV cache size: %s tokens", f"{info.kv_cache_tokens:,}")  # the line users grep for, on a CPU too
    logger.info("Maximum concurrency for %s tokens per request: %.2fx", f"{max_model_len:,}", concurrency)
    gc.collect()
    gc.freeze()  # what start-up made stays: later collections, in the middle of steps, need not look through it
    atexit.register(gc.unfreeze)  # or libraries would report it as leaked
    engine = Engine(scheduler, runner, info, config.model.seed, profiler)
    if settings and settings.autostart:
        engine.profile(start=True)
    return engine


def _blocks(runner: Runner, num_tokens: int) -> int:
    windows = [group.window for group in runner.layout.groups]
    return blocks_for(windows, runner.layout.block_size, num_tokens, runner.facts.max_num_batched_tokens)


def _fitting_length(runner: Runner) -> int:
    """The context length to serve: as settled, or the largest that fits if that was asked for or there is less room."""
    wanted, available = runner.facts.max_model_len, runner.layout.num_blocks - 1
    if _blocks(runner, wanted) <= available:
        return wanted
    low, high = 0, wanted  # the largest length whose blocks are available lies in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _blocks(runner, middle) <= available else (low, middle)
    if runner.facts.fit_model_len and low:
        logger.info("The KV cache holds %d tokens of one request: serving contexts up to that", low)
        return low
    size, flag = runner.layout.block_bytes, size_flag(runner.config, runner.device)
    fitting = f"use --max-model-len {low} or less, or " if low else ""
    raise ConfigError(
        f"One request of --max-model-len {wanted} needs {_blocks(runner, wanted) * size / GIB:.2f} GiB of KV cache, "
        f"but {available * size / GIB:.2f} GiB are available; {fitting}give the cache more memory with {flag}."
    )


def _vocabulary(config: Config, files: ModelFiles, runner: Runner) -> "LLTokenizer":
    """The tokenizer's vocabulary for grammars; a second of work. Raises ``ValueError`` if its bytes can't be told."""
    from transformers import PreTrainedTokenizerFast

    began = time.monotonic()
    tokenizer = source.load_tokenizer(files, config.model, config.load)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"Structured outputs can't be had with this model's tokenizer, a {type(tokenizer).__name__}.")
    from llguidance.hf import from_tokenizer

    ends = list(runner.facts.eos_token_ids) or None
    vocabulary = from_tokenizer(tokenizer, n_vocab=runner.vocab_size, eos_token=ends)
    logger.info("The vocabulary for grammars took %.1f seconds", time.monotonic() - began)
    return vocabulary
