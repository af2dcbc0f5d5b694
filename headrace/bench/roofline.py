"""``headrace plan``: what a model needs of devices that need not be there, and how fast they let it be at best.

Memory by the engine's own rules, speed by the arithmetic that benchmarks judge by. Bytes; times in milliseconds.
"""

import bisect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
from transformers import PretrainedConfig

from headrace.bench.devices import CPU, Device
from headrace.bench.formats import cache_dtype, weight_format
from headrace.bench.latent import Latent, latent_spec
from headrace.bench.limits import Ceilings, StepTime, cache_read, weights_read
from headrace.bench.shares import META, Model, Share, num_parameters, shares, widest
from headrace.config import OPTIONS, Config
from headrace.device import GIB
from headrace.engine.kv_cache import blocks_for
from headrace.errors import ConfigError
from headrace.models import packaged, source
from headrace.models.registry import spec_for
from headrace.models.spec import Spec
from headrace.runner.facts import Facts, model_limit, settle
from headrace.runner.graphs import LARGEST, capture_sizes
from headrace.runner.memory import block_bytes, cache_budget, group_layers
from headrace.runner.rows import Rows

CONTEXT_BYTES = int(0.9 * GIB)  # that CUDA, its libraries' workspaces and the kernels take of a GPU
COMMUNICATION_BYTES = int(0.3 * GIB)  # that NCCL's buffers add
GRAPH_BYTES = 85 * 2**20  # of all captured steps beside what each leaves: they share the rest


@dataclass(frozen=True)
class Setting:
    """What is planned: an engine's configuration, which may ask for what is still to come, and its device."""

    config: Config
    device: Device

    @property
    def tensor(self) -> int:
        return self.config.parallel.tensor_parallel_size

    @property
    def pipeline(self) -> int:
        return self.config.parallel.pipeline_parallel_size

    @property
    def place(self) -> torch.device:
        """Where the engine would believe to be."""
        return torch.device(CPU if self.device.type == CPU else "cuda")


@dataclass(frozen=True)
class Memory:
    """Where one device's bytes go; the cache gets what is left, if there is any."""

    weight_bytes: int
    table_bytes: int  # rotations, and the running requests' tokens and blocks
    runtime_bytes: int
    activation_peak_bytes: int
    graph_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True)
class Cache:
    """The KV cache of one device."""

    blocks: int
    block_size: int
    windows: list[int | None]
    max_step_tokens: int

    def needed(self, context: int) -> int:
        """Blocks of one request with ``context`` tokens."""
        return blocks_for(self.windows, self.block_size, context, self.max_step_tokens)

    def largest_context(self, limit: int) -> int:
        """The longest context, up to ``limit`` tokens, of which one request fits."""
        return bisect.bisect_right(range(limit + 1), self.blocks, key=self.needed) - 1


def plan(setting: Setting, batches: Sequence[int], context: int | None) -> dict[str, Any]:
    """All figures of a plan by their JSON keys; ``context`` None: 2,048 tokens, or the longest the model may have.

    Raises ``ConfigError`` for what can't be had. That a model doesn't fit is no error: then ``fits`` is false.
    """
    config, device = setting.config, setting.device
    hf_config, facts = settled(setting)
    notes = missing(setting, hf_config)
    model = described(setting, hf_config, facts)
    (whole,) = shares(model, setting.place, 1, 1)
    parts = shares(model, setting.place, setting.tensor, setting.pipeline)
    memories = [memory_of(setting, part, facts, whole.spec.vocab_size) for part in parts]
    caches = [cache_of(part, memory, facts, model) for part, memory in zip(parts, memories, strict=True)]
    limit = max(model_limit(hf_config.get_text_config()) or 0, facts.max_model_len)
    largest = min(cache.largest_context(limit) for cache in caches)
    length = min(facts.max_model_len, largest) if facts.fit_model_len and largest else facts.max_model_len
    concurrency = min(cache.blocks / cache.needed(length) for cache in caches)
    context = context or min(2048, length)
    speed = Speed(setting, model, parts)
    return {
        "model": config.model.model or packaged.NAME,
        "architecture": model.spec.architecture,
        "dtype": name_of(model.dtype),
        "quantization": model.storage(setting.place),
        "kv_cache_dtype": name_of(model.cache_dtype),
        "device": {key: value for key, value in msgspec.to_builtins(device).items() if value is not None},
        "tensor_parallel_size": setting.tensor,
        "pipeline_parallel_size": setting.pipeline,
        "parameters": num_parameters(model),
        "weight_bytes": whole.weight_bytes,
        "weight_bytes_per_gpu": max(part.weight_bytes for part in parts),
        "kv_bytes_per_token": whole.cost.kv_bytes,
        "kv_bytes_per_token_per_gpu": max(part.cost.kv_bytes for part in parts),
        "gpu_memory_utilization": config.cache.gpu_memory_utilization,
        "memory_per_gpu": asdict(min(memories, key=lambda memory: memory.kv_cache_bytes)),
        "kv_cache_tokens": int(concurrency * length),
        "max_model_len": length,
        "max_concurrency": concurrency,
        "largest_context": largest,
        "fits": largest >= length and all(sum(asdict(memory).values()) <= device.memory_bytes for memory in memories),
        "max_num_batched_tokens": facts.max_num_batched_tokens,
        "max_num_seqs": facts.max_num_seqs,
        "context": context,
        "decode": [
            speed.decode(batch, context) | {"fits": all(batch * c.needed(context) <= c.blocks for c in caches)}
            for batch in batches
        ],
        "prefill": speed.prefill(context),
        "notes": notes,
    }


def speed_of(setting: Setting) -> "Speed":
    """The least times alone."""
    model = described(setting, *settled(setting))
    return Speed(setting, model, shares(model, setting.place, setting.tensor, setting.pipeline))


def settled(setting: Setting) -> tuple[PretrainedConfig, Facts]:
    """What the engine would go by; where no model has a plain name, the shapes that might be meant are listed."""
    config = setting.config
    try:
        files = source.resolve(config.model, config.load)
    except ConfigError as error:
        if "/" in config.model.model:
            raise
        raise ConfigError(f"{error} Shapes to plan with by name are {', '.join(source.shapes())}.") from error
    hf_config = source.load_config(files, config.model.hf_overrides, config.model.trust_remote_code)
    return hf_config, settle(config, hf_config, {}, setting.place, setting.device.memory_bytes)


def missing(setting: Setting, hf_config: PretrainedConfig) -> list[str]:
    """Why Headrace couldn't run this today, a sentence each, in the words of what would refuse it."""
    notes, quantization = [], setting.config.features.quantization
    try:
        setting.config.replace(quantization=None if quantization == "none" else quantization)
    except ConfigError as error:
        notes.append(str(error))
    try:
        spec_for(hf_config, 1)
    except ConfigError as error:
        notes.append(str(error))
    if setting.device.type not in OPTIONS["device"].facts.choices:
        notes.append(f"There is no --device {setting.device.type} yet.")
    return notes


def described(setting: Setting, hf_config: PretrainedConfig, facts: Facts) -> Model:
    """The model to plan for, also where its quantization or its attention is still to come."""
    scheme = getattr(hf_config, "quantization_config", None) or {}
    scheme = scheme if isinstance(scheme, dict) else scheme.to_dict()
    asked = setting.config.features
    form = weight_format(asked.quantization, scheme)
    if scheme.get("quant_method") != "gguf":
        hf_config.quantization_config = None
    spec, latent = spec_of(hf_config, facts.max_model_len)
    return Model(spec, latent, facts.dtype, cache_dtype(asked.kv_cache_dtype, facts.dtype), form)


def spec_of(hf_config: PretrainedConfig, max_model_len: int) -> tuple[Spec, Latent | None]:
    try:
        spec = spec_for(hf_config, max_model_len)
    except ConfigError:
        if not getattr(hf_config, "kv_lora_rank", None):
            raise
        return latent_spec(hf_config, max_model_len)
    if not spec.head:
        raise ConfigError(f"A {spec.architecture} pools its prompts; a plan is made for models that generate only.")
    return spec, None


def memory_of(setting: Setting, part: Share, facts: Facts, vocab_size: int) -> Memory:
    """Where a device's memory goes, by the rule of ``runner.memory.cache_budget``."""
    config, device, size = setting.config, setting.device, facts.dtype.itemsize
    rows = Rows(facts.max_num_seqs, facts.max_model_len, len(group_layers(part.attentions)), facts.block_size, META)
    tables = part.table_bytes + rows.tokens.nbytes + rows.tables.nbytes
    peak = max(facts.max_num_batched_tokens * widest(part.spec), facts.max_num_seqs * 2 * vocab_size) * size
    if setting.place.type == CPU:
        left = min(cache_budget(config, setting.place, peak), device.memory_bytes - part.weight_bytes - tables - peak)
        return Memory(part.weight_bytes, tables, 0, peak, 0, left)
    graphs = graph_bytes(
        capture_sizes(config, facts.max_num_batched_tokens, facts.max_num_seqs), part, facts, vocab_size
    )
    runtime = CONTEXT_BYTES + (COMMUNICATION_BYTES if setting.tensor * setting.pipeline > 1 else 0)
    taken = part.weight_bytes + tables + runtime + peak + graphs
    left = int(device.memory_bytes * config.cache.gpu_memory_utilization) - taken
    return Memory(part.weight_bytes, tables, runtime, peak, graphs, config.cache.kv_cache_memory_bytes or left)


def graph_bytes(sizes: Sequence[int], part: Share, facts: Facts, vocab_size: int) -> int:
    """As much as ``Runner._measure_graphs`` keeps free: of the largest size, and of all others by the second's tokens.

    A captured step leaves its hidden states, and the logits of those rows that it draws for; smaller sizes are captured
    twice, the second time with prefill and without logits.
    """
    if not sizes:
        return 0

    def left(tokens: int) -> int:
        hidden = tokens * part.spec.dim * (2 if tokens <= LARGEST else 1)
        return (hidden + min(tokens, facts.max_num_seqs) * vocab_size) * facts.dtype.itemsize

    *others, largest = sizes
    return GRAPH_BYTES + left(largest) + left(max(others, default=0)) * sum(others) // max(others, default=1)


def cache_of(part: Share, memory: Memory, facts: Facts, model: Model) -> Cache:
    groups = group_layers(part.attentions)
    size = block_bytes(part.attentions, groups, facts.block_size, model.cache_dtype)
    windows = [group.window for group in groups]
    return Cache(max(memory.kv_cache_bytes, 0) // size, facts.block_size, windows, facts.max_num_batched_tokens)


@dataclass(frozen=True)
class Speed:
    """The least times of a model's steps. Stages follow each other; all-reduces wait for the products before them."""

    setting: Setting
    model: Model
    parts: list[Share]

    @property
    def ceilings(self) -> Ceilings:
        device, dtype = self.setting.device, name_of(self.model.dtype)
        number = (self.model.format and self.model.format.number) or dtype
        return Ceilings(device.bytes_per_second, device.flops(dtype), device.flops(number))

    def decode(self, batch: float, context: float) -> dict[str, Any]:
        """Of a step with one token of each of ``batch`` requests, and what each term of it costs a device."""
        costs = [part.cost for part in self.parts]
        total, slowest, terms = self.sums([self.ceilings.decode_step(cost, batch, context) for cost in costs], batch)
        return {
            "batch_size": batch,
            "tpot_ms": 1e3 * total,
            "output_tokens_per_second": batch / slowest,
            **terms,
            "weight_bytes_read": int(sum(weights_read(cost, batch) for cost in costs)),
            "cache_bytes_read": int(sum(batch * cache_read(cost, context) for cost in costs)),
            "flops": sum(batch * (cost.layer_flops + cost.head_flops) for cost in costs),
        }

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Of one prompt of ``tokens`` tokens."""
        steps = [self.ceilings.prefill_step(part.cost, tokens) for part in self.parts]
        total, slowest, terms = self.sums(steps, tokens)
        return {"prompt_tokens": tokens, "ttft_ms": 1e3 * total, "tokens_per_second": tokens / slowest, **terms}

    def sums(self, steps: list[StepTime], tokens: float) -> tuple[float, float, dict[str, Any]]:
        """(seconds of all stages, of the slowest one, the terms) of a step of ``tokens`` tokens."""
        reduced = [self.all_reduce_bytes(part, tokens) for part in self.parts]
        hops = tokens * self.model.spec.dim * self.model.dtype.itemsize * (len(self.parts) - 1)
        stages = [step.total + num_bytes / self.link for step, num_bytes in zip(steps, reduced, strict=True)]
        terms = {
            "weights_ms": 1e3 * sum(step.weights for step in steps),
            "products_ms": 1e3 * sum(step.products for step in steps),
            "cache_ms": 1e3 * sum(step.cache for step in steps),
            "link_ms": 1e3 * (sum(reduced) + hops) / self.link,
            "all_reduce_bytes": sum(reduced),
        }
        return sum(stages) + hops / self.link, max(stages), terms

    def all_reduce_bytes(self, part: Share, tokens: float) -> float:
        """Bytes each device of a stage sends: in a ring every rank passes on all parts but one, twice."""
        ranks, spec = self.setting.tensor, part.spec
        sums = len(spec.layers) * (1 if spec.wiring.parallel else 2)
        return sums * tokens * spec.dim * self.model.dtype.itemsize * 2 * (ranks - 1) // ranks

    @property
    def link(self) -> float:
        return self.setting.device.link_bytes_per_second or float("inf")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
