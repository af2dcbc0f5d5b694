"""Joins model, attention, rows and sampler: loads a model, sizes its KV cache, executes plans.

Knows tensors and files; does not know requests' text, queues or processes.
"""

import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from headrace import device as devices
from headrace.attention.select import select_backend
from headrace.config import Config
from headrace.device import GIB, to_device
from headrace.errors import ConfigError
from headrace.models import loader, source
from headrace.models.cost import step_cost
from headrace.models.decoder import Decoder
from headrace.models.packaged import cache_root
from headrace.models.pooling import JUDGE_TEMPLATE, pooling_of
from headrace.models.quantized import method_for
from headrace.models.registry import spec_for
from headrace.models.source import ModelFiles
from headrace.models.spec import Spec
from headrace.ops import tuned
from headrace.ops.jit import compiling
from headrace.runner import memory
from headrace.runner.batch import Batch, pack, sampled_places, unpack
from headrace.runner.embeds import embeds_of
from headrace.runner.facts import Facts, settle
from headrace.runner.graphs import LARGEST, Graphs, Step, capture_sizes, dummy_plan
from headrace.runner.logits_processors import load_processors
from headrace.runner.pooler import Pooler, make_pooler
from headrace.runner.rows import Rows
from headrace.runner.sampler import Sampler, TopLogprobs, top_logprobs
from headrace.types import KVCacheLayout, KVGroup, LedgerEntry, Plan, Progress, Sampled

logger = logging.getLogger(__name__)

# Tokens, and whether some rows prefill. The kernels that take longest to compile come first.
KINDS_OF_STEPS = (256, True), *((size, False) for size in (64, 32, 16, 2, 1))
PROMPT_LOGITS_AT_ONCE = 256  # positions whose whole-vocabulary logits are held at a time for prompt_logprobs


class Ledger:
    """Where start-up's seconds and bytes went."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self._since = time.monotonic()

    def record(self, stage: str, num_bytes: int = 0) -> None:
        now = time.monotonic()
        self.entries.append(LedgerEntry(stage, now - self._since, num_bytes))
        self._since = now


class Runner:
    """One device's share of the engine. ``layout`` and ``facts`` tell the scheduler what it may plan."""

    def __init__(self, config: Config, files: ModelFiles, on_progress: Callable[[Progress], None]):
        self.config = config
        self.ledger = Ledger()
        self.device = devices.pick_device(config.model.device)
        tuned.use(self.device, cache_root())
        hf_config = source.load_config(files, config.model.hf_overrides, config.model.trust_remote_code)
        generation = source.generation_config(files, config.model.generation_config)
        self.pooling = pooling_of(config, files, hf_config)
        self.facts: Facts = settle(config, hf_config, generation, self.device, pooling=self.pooling)
        needs_head = self.pooling is None or bool(self.pooling.answers)
        spec = spec_for(hf_config, self.facts.max_model_len, needs_head)
        self.architecture, self.vocab_size = spec.architecture, spec.vocab_size
        self._processors = load_processors(config, self.device)  # if they can't be had, say so before loading
        self.ledger.record("model configuration")
        self.model = self._load(build_decoder(config, spec, self.facts, self.device), files, on_progress)
        self.pooler = self._make_pooler(files, hf_config)
        self._attentions = self.model.attention_layers
        groups = memory.group_layers([layer.spec for layer in self._attentions])
        self._backends = [self._attentions[group.layers[0]].backend for group in groups]
        self.cost = step_cost(self.model, self.facts.dtype)
        self.fit(self.facts.max_model_len)
        self._graphs: Graphs | None = None
        self._capture_sizes = self._sizes_to_capture()
        self.layout = self._size_cache(groups)
        if self.layout.block_bytes:
            memory.bind_caches(self._attentions, self.layout, self.facts.dtype, self.device)
        self.ledger.record("KV cache", self.layout.num_blocks * self.layout.block_bytes)
        overlap = config.scheduler.async_scheduling and self.device.type != "cpu" and self._processors is None
        self.steps_in_flight = 2 if overlap else 1

    def purpose(self) -> dict[str, Any]:
        """What EngineInfo says of a model that pools; nothing of one that generates."""
        if self.pooler is None:
            return {}
        pooling, dense, tasks = self.pooler.pooling, self.pooler.embedding_size, list(self.pooler.heads)
        if pooling.main is not None and pooling.main not in tasks:
            raise ConfigError(
                f"--pooler-config's task {pooling.main} can't be had of this model: {', '.join(tasks)} can."
            )
        return {
            "tasks": sorted(tasks, key=lambda task: task != pooling.main),
            "embedding_sizes": [dense, *pooling.sizes],
            "labels": list(pooling.labels),
            "prompts": pooling.prompts,
            "pair_template": JUDGE_TEMPLATE if pooling.answers else None,
        }

    def fit(self, max_model_len: int) -> None:
        """Make the rows for contexts of up to ``max_model_len`` tokens."""
        self.rows = Rows(
            self.facts.max_num_seqs, max_model_len, len(self._backends), self.facts.block_size, self.device
        )
        self.sampler = Sampler(self.rows, self.config.model.logprobs_mode, self._processors)

    def capture(self, on_progress: Callable[[Progress], None]) -> None:
        """Capture the first of the usual steps; ``prepare`` goes on with it."""
        if not self._capture_sizes:
            return
        before, graphs = devices.used_memory(self.device), self._new_graphs()
        first = graphs.first
        for done, size in enumerate(first):
            on_progress(Progress("Capturing graphs", done, len(first)))
            graphs.capture(size)
        on_progress(Progress("Capturing graphs", len(first), len(first)))
        self._graphs = graphs
        self.ledger.record("graphs", devices.used_memory(self.device) - before)

    def prepare(self) -> bool:
        """Capture one more of the usual steps, the largest first; False if there is none left. For idle moments."""
        return self._graphs is not None and self._graphs.capture_next()

    @torch.inference_mode()
    def execute(self, plan: Plan) -> Callable[[], Sampled]:
        """Launch a step; the returned call waits for it and gives what it sampled."""
        self.rows.apply(plan.freed_rows, plan.new_rows, plan.new_blocks)
        if self._processors is not None:
            self._processors.release(plan.freed_rows)
        if self.pooler is not None:
            return self.pooler(plan, self._hidden(plan, self.pooler), self.rows)
        embeds = embeds_of(plan, self.rows)
        graph = self._graphs.find(plan) if self._graphs and embeds is None else None
        batch = pack(plan, self._backends, self.rows.spare, graph.shape if graph else None)
        step = graph.replay(batch) if graph else self._launch(self._on_device(batch), batch, embeds=embeds)
        prompts = self._prompt_logprobs(plan, step.hidden)
        tokens, logprobs, rows = None, None, [plan.rows[i] for i in plan.sampled]
        if step.tokens is not None and not plan.masked and self.sampler.plain(rows):
            tokens = step.tokens[: len(rows)]
        elif rows:
            places = sampled_places(step.numbers, batch)
            logits = self.model.logits(step.hidden[places.tokens]) if step.logits is None else step.logits[: len(rows)]
            lengths = [batch.contexts[i] for i in plan.sampled]
            tokens, logprobs = self.sampler(logits, places, rows, lengths, plan.masked, plan.masks)
        return self._pending(tokens, logprobs, rows, prompts)

    def _hidden(self, plan: Plan, pooler: Pooler) -> torch.Tensor:
        """The hidden states [T, dim] of a step of prompts to be pooled."""
        batch = pack(plan, self._backends, self.rows.spare)
        token_ids, step = unpack(self._on_device(batch), batch, self.rows, self.facts.block_size)
        if self.model.spec.num_token_types > 1:
            step = replace(step, token_types=to_device(pooler.token_types(plan, self.rows), self.device))
        return self.model(token_ids, step)

    def _launch(
        self,
        numbers: torch.Tensor,
        batch: Batch,
        draw: bool = False,
        embeds: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Step:
        """Run a packed step on the device, up to its hidden states, or its draws where no row asks for more."""
        token_ids, step = unpack(numbers, batch, self.rows, self.facts.block_size)
        hidden = self.model(token_ids, step if embeds is None else replace(step, embeds=embeds))
        if not draw:
            return Step(numbers, hidden)
        places = sampled_places(numbers, batch)
        logits = self.model.logits(hidden[places.tokens])
        return Step(numbers, hidden, logits, self.sampler.draw(logits, places))

    def _on_device(self, batch: Batch) -> torch.Tensor:
        return to_device(torch.from_numpy(batch.numbers), self.device)

    def _pending(
        self,
        tokens: torch.Tensor | None,
        logprobs: TopLogprobs | None,
        rows: list[int],
        prompts: dict[int, list[TopLogprobs]],
    ) -> Callable[[], Sampled]:
        """Start the copies to the host; the returned call awaits them."""
        ids = None if tokens is None else tokens.to("cpu", non_blocking=True)
        logprobs = None if logprobs is None else logprobs.to_host()
        prompts = {row: [part.to_host() for part in parts] for row, parts in prompts.items()}
        wanted = self.rows.wishing("logprobs", rows)
        await_copies = devices.mark(self.device)

        def wait() -> Sampled:
            await_copies()
            sampled = Sampled([] if ids is None else ids.tolist())
            if self._processors is not None and ids is not None:
                self._processors.record(sampled.token_ids)
            if logprobs is not None:
                sampled.logprobs = [None] * len(sampled.token_ids)
                for i, entry in zip(wanted, logprobs.positions(), strict=True):
                    sampled.logprobs[i] = entry
            for row, parts in prompts.items():
                sampled.prompt_logprobs[row] = [entry for part in parts for entry in part.positions()]
            return sampled

        return wait

    def _prompt_logprobs(self, plan: Plan, hidden: torch.Tensor) -> dict[int, list[TopLogprobs]]:
        """For each row that asks: its chunk's logprobs of the prompt tokens that follow each position."""
        found: dict[int, list[TopLogprobs]] = {}
        for i in self.rows.wishing("prompt_logprobs", plan.rows):
            row, start, count, first = plan.rows[i], plan.starts[i], plan.counts[i], sum(plan.counts[:i])
            fact = self.rows.fact(row)
            wanted = fact.params.prompt_logprobs or 0
            last = min(start + count, fact.num_prompt_tokens - 1)  # the last token's successor is no prompt token
            parts = []
            for begin in range(start, last, PROMPT_LOGITS_AT_ONCE):
                end = min(begin + PROMPT_LOGITS_AT_ONCE, last)
                logits = self.model.logits(hidden[first + begin - start : first + end - start]).float()
                following = self.rows.tokens[row, begin + 1 : end + 1].long()
                counts = [wanted] * (end - begin)
                parts.append(top_logprobs(self.sampler.normalize(logits), following, counts))
            if parts:
                found[row] = parts
        return found

    # -- start-up ---------------------------------------------------------------------------------------------------

    def _load(self, model: Decoder, files: ModelFiles, on_progress: Callable[[Progress], None]) -> Decoder:
        loader.load(
            model,
            files,
            self.config.load.load_format,
            lambda done, total: on_progress(Progress("Loading weights", done, total)),
            self.config.model.seed,
        )
        model.eval().requires_grad_(False)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        self.ledger.record("weights", size)
        logger.info("Model loading took %.2f GiB and %.2f seconds", size / GIB, self.ledger.entries[-1].seconds)
        return model

    def _make_pooler(self, files: ModelFiles, hf_config: PretrainedConfig) -> Pooler | None:
        if self.pooling is None:
            return None

        def token_id(token: str) -> int:
            tokenizer = source.load_tokenizer(files, self.config.model, self.config.load)
            ids: list[int] = tokenizer(token, add_special_tokens=False)["input_ids"]
            if len(ids) != 1:
                raise ConfigError(
                    f"{token!r} is no single token of this model, so it can't be judged by; "
                    "name two that are, as --hf-overrides.classifier_from_token."
                )
            return ids[0]

        ends = getattr(hf_config, "bos_token_id", None), getattr(hf_config, "eos_token_id", None)
        return make_pooler(self.model, self.pooling, Path(files.path), token_id, ends, self.device)

    def _size_cache(self, groups: list[KVGroup]) -> KVCacheLayout:
        facts = self.facts
        if not self._attentions[0].spec.causal:
            return memory.uncached(groups, facts.block_size, facts.max_num_batched_tokens, facts.max_num_seqs)
        num_bytes = memory.block_bytes(
            [layer.spec for layer in self._attentions], groups, facts.block_size, facts.dtype
        )
        needed = 0
        if self.device.type == "cuda":
            # Until the rows hold requests all that a step writes goes to block 0.
            trial = KVCacheLayout(facts.block_size, 1, groups, num_bytes)
            memory.bind_caches(self._attentions, trial, facts.dtype, self.device)
            if self.pooler is None:
                self._compile()
            needed = self._measure_step() + self._measure_graphs()
        budget = memory.cache_budget(self.config, self.device, needed)
        return memory.plan_cache(self.config, self.device, groups, facts.block_size, num_bytes, budget)

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compile the kernels of the usual kinds of steps, many at a time. They don't run, so all ids must be made."""
        with compiling():
            for num_tokens, mixed in KINDS_OF_STEPS:
                rows = min(num_tokens, self.facts.max_num_seqs)
                plan = dummy_plan(num_tokens, rows, self.rows.spare, self.facts.max_model_len, mixed)
                batch = pack(plan, self._backends, self.rows.spare)
                numbers = self._on_device(batch)
                token_ids, step = unpack(numbers, batch, self.rows, self.facts.block_size)
                zeros = torch.zeros_like(token_ids)
                hidden = self.model(zeros, replace(step, positions=zeros))
                self.sampler.draw(self.model.logits(hidden[: batch.num_sampled]), sampled_places(numbers, batch))
        self.ledger.record("kernels")

    @torch.inference_mode()
    def _measure_step(self) -> int:
        """Bytes that the largest step needs beside weights, rows and cache, found by running it."""
        facts = self.facts
        rows, longest = facts.max_num_seqs, facts.max_model_len
        plan = dummy_plan(facts.max_num_batched_tokens, rows, self.rows.spare, longest, mixed=True)
        batch = pack(plan, self._backends, self.rows.spare)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        hidden = self._launch(self._on_device(batch), batch).hidden
        if self.pooler is None:
            self.model.logits(hidden[:rows]).log_softmax(dim=-1)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        self.ledger.record("memory measurement", peak)
        return peak

    def _measure_graphs(self) -> int:
        """Bytes that all graphs will need: what the largest takes, and of each other as much a token as the second."""
        if not self._capture_sizes:
            return 0
        *others, largest = self._capture_sizes
        trial, used = self._new_graphs(), [devices.used_memory(self.device)]
        for size in (largest, *others[-1:]):
            trial.capture(size)
            used.append(devices.used_memory(self.device))
        first, *second = (after - before for before, after in itertools.pairwise(used))
        return first + sum(second) * sum(others) // max(others, default=1)

    def _sizes_to_capture(self) -> list[int]:
        """None on a CPU, or where a step can't run without the host; the log says why."""
        reason = None
        if self.device.type != "cuda" or self.pooler is not None:
            return []
        if self.model.waits_for_device:
            reason = "the host counts each expert's tokens"
        for backend in self._backends:
            if backend.capturable < LARGEST:
                reason = f"the attention backend {backend.name} works from the host's numbers"
        if reason:
            logger.info("No step is captured as a CUDA graph: %s", reason)
            return []
        return capture_sizes(self.config, self.facts.max_num_batched_tokens, self.facts.max_num_seqs)

    def _new_graphs(self) -> Graphs:
        rows = self.rows
        return Graphs(self._launch, self._backends, self._capture_sizes, rows.spare, rows.max_model_len)


def build_decoder(config: Config, spec: Spec, facts: Facts, device: torch.device) -> Decoder:
    name = config.model.attention_backend
    return Decoder(
        spec,
        facts.dtype,
        device,
        lambda attention: select_backend(name, attention, device, facts.dtype, facts.block_size),
        method_for(spec, facts.dtype, device),
    )
