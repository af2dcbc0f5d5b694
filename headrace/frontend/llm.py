"""The synchronous handle: an engine in this process, for scripts and notebooks. Knows neither processes nor HTTP."""

import dataclasses
import gc
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from msgspec import Meta
from msgspec.structs import replace

from headrace.config.options import ModelOptions
from headrace.engine.core import Engine
from headrace.engine.threads import wait_briefly
from headrace.errors import ProfilerActiveError, ProfilerError, RequestError
from headrace.frontend.beam import BeamSearchOutput, BeamSearchParams, found_by, new_track
from headrace.frontend.chat import render_chat
from headrace.frontend.door import Door, Prompt, load_tokenizer
from headrace.frontend.grammar import check_grammar
from headrace.frontend.metrics import Metrics
from headrace.frontend.overrides import configured
from headrace.frontend.pooling import PoolingTrack, Scoring, with_tensor
from headrace.frontend.progress import prompt_progress, startup_progress
from headrace.frontend.readings import Metric, readings
from headrace.frontend.rendering import final_text
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.tracker import Track, Tracker
from headrace.frontend.validation import of_kind, tokenization
from headrace.models import source
from headrace.params import typed
from headrace.types import (
    ClassificationOutput,
    EmbeddingOutput,
    OutputKind,
    PoolingParams,
    PoolingRequestOutput,
    RequestOutput,
    SamplingParams,
)

if TYPE_CHECKING:
    from headrace.frontend.llm_engine import LLMEngine

T = TypeVar("T")
Messages = list[dict[str, Any]]
Shown = bool | Callable[..., Any]  # whether a bar shows progress, or what makes one, such as tqdm


@dataclasses.dataclass(frozen=True)
class ModelConfig(ModelOptions):
    hf_config: Any = None  # transformers' PretrainedConfig


def _absent(what: str) -> Callable[..., Any]:
    def method(self: "LLM", *_: Any, **__: Any) -> Any:
        raise NotImplementedError(f"This version does not have {what} yet.")

    return method


class LLM:
    """A model to generate with: ``LLM("path or hub id").generate("Hello")``. Options are those of the command line.

    ``hf_overrides`` may be a function of the model's configuration, and ``logits_processors`` may hold classes as well
    as "module:Class"; metrics are kept with ``disable_log_stats=False``.
    Raises ``ConfigError`` if the model can't be served as asked.
    """

    def __init__(self, model: str | None = None, **options: Any):
        wait_briefly()
        from headrace.engine.start import build_engine  # loads torch

        if isinstance(processors := options.get("logits_processors"), list | tuple):
            options["logits_processors"] = [_name(processor) for processor in processors]
        options = {"disable_log_stats": True} | ({"model": model} if model else {}) | options
        self.config = configured(options)
        self._files = files = source.resolve(self.config.model, self.config.load)
        with startup_progress(self.config.load.use_tqdm_on_load) as show:
            self._engine: Engine | None = build_engine(self.config, files, show)
        self.info = self._engine.info
        self.door = Door(self.config, self.info, load_tokenizer(files, self.config))
        self._tracker = Tracker([])
        self._metrics: Metrics | None = None
        if not self.config.server.disable_log_stats:
            self._metrics = Metrics(self.config, self.info, (self.config.model.served_model_name or [files.name])[0])
            self._tracker.observers.append(self._metrics)
        self._queued: list[Track] = []  # by ``enqueue``
        self._ids = map(str, itertools.count())

    @property
    def tokenizer(self) -> Tokenizer:
        return self.door.needed_tokenizer()

    def get_tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self.tokenizer.hf

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> "LLM":
        """The LLM that vLLM's ``EngineArgs`` ask for."""
        return cls(**dataclasses.asdict(engine_args))

    @cached_property
    def llm_engine(self) -> "LLMEngine":
        """The same engine for callers who make each step themselves."""
        from headrace.frontend.llm_engine import LLMEngine  # which is made of this class

        return LLMEngine(self)

    @cached_property
    def model_config(self) -> "ModelConfig":
        """The model's options, with the length and the type that the engine settled on, and its configuration."""
        model, info = self.config.model, self.info
        hf_config = source.load_config(self._files, model.hf_overrides, model.trust_remote_code)
        settled = {"max_model_len": info.max_model_len, "dtype": info.dtype, "hf_config": hf_config}
        return ModelConfig(**vars(model) | settled)

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's makers advise."""
        return SamplingParams(**self.info.default_sampling)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Shown = True,
        priority: Sequence[int] | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Complete one or many prompts (texts or token ids); the outputs are in their order.

        ``sampling_params``: one for all, or one a prompt; the model's defaults if None. ``use_tqdm``: whether a bar
        shows progress, or what makes one. ``others``: what else vLLM's method takes. Raises ``RequestError`` before
        anything runs if one prompt or its parameters can't be served.
        """
        return self._run(self._tracks(prompts, sampling_params, priority, others), use_tqdm)

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        priority: Sequence[int] | None = None,
        **others: Any,
    ) -> list[str]:
        """Keep prompts as ``generate`` takes them until ``wait_for_completion``; the ids of their requests."""
        tracks = self._tracks(prompts, sampling_params, priority, others)
        self._queued += tracks
        return [track.request_id for track in tracks]

    def wait_for_completion(self, *, use_tqdm: Shown = True) -> list[RequestOutput]:
        """Complete what was enqueued since the last time, all of it together; the outputs in that order."""
        tracks, self._queued = self._queued, []
        return self._run(tracks, use_tqdm)

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: Shown = True,
        chat_template: str | None = None,
        chat_template_content_format: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        **others: Any,
    ) -> list[RequestOutput]:
        """Answer one conversation, or many; each is a list of ``{"role": …, "content": …}``.

        ``tools`` are shown to the model by its template; calls are text, like all of the answer.
        """
        if not isinstance(messages, list | tuple):
            raise RequestError(f"A conversation is a list of messages, got {messages!r}.", "messages")
        conversations: list[Any] = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        options = self.config.frontend
        template_kwargs = typed(chat_template_kwargs or {}, dict[str, Any], "chat_template_kwargs")
        texts = [
            render_chat(
                self.tokenizer,
                conversation,
                chat_template=chat_template or self.door.chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                content_format=chat_template_content_format or options.chat_template_content_format,
                template_kwargs=options.default_chat_template_kwargs | template_kwargs,
                tools=tools,
            )
            for conversation in conversations
        ]
        continued = [final_text(conversation) if continue_final_message else None for conversation in conversations]
        params = map(self.door.placed, self._params(sampling_params, len(texts)), texts, continued)
        as_rendered = tokenization(others, add_special_tokens=False)
        tracks = [self._track(text, p, **as_rendered) for text, p in zip(texts, params, strict=True)]
        return self._run(tracks, use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """One prompt's outputs as they come, each with what is new; closing the iterator ends the request."""
        params = self._params(sampling_params, 1)[0].clone(output_kind=OutputKind.DELTA)
        track = self._track(prompt, params)
        self._submit(track)
        try:
            finished = False
            while not finished:
                if not track.finished:  # as it may be by the steps of another stream
                    self._step()
                finished = track.finished
                if output := track.output():
                    yield output
        finally:
            self._abort(track.request_id)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        use_tqdm: Shown = False,
        concurrency_limit: int | None = None,
        **others: Any,
    ) -> list[BeamSearchOutput]:
        """The ``beam_width`` likeliest continuations of each prompt that a beam search finds.

        ``concurrency_limit``: how many prompts are searched at once; all unless given.
        """
        options = tokenization(others)
        wanted = of_kind(params, BeamSearchParams, "params").sampling_params
        tracks = [self._track(prompt, wanted, **options) for prompt in _as_list(prompts)]
        width = typed(concurrency_limit, Annotated[int, Meta(ge=1)] | None, "concurrency_limit")
        at_once = width or len(tracks) or 1
        outputs: list[RequestOutput] = []
        for first in range(0, len(tracks), at_once):
            outputs += self._run(tracks[first : first + at_once], use_tqdm)
        return [found_by(output, self.door.tokenizer) for output in outputs]

    # -- pooling ----------------------------------------------------------------------------------------------------

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        use_tqdm: Shown = True,
        pooling_task: str | None = None,
        **others: Any,
    ) -> list[PoolingRequestOutput]:
        """What the model makes of each prompt, as a tensor in ``outputs.data``: by default its main task."""
        many = _as_list(prompts)
        each = _pooling_params(pooling_params, len(many))
        prepared = [(prompt, one.clone(task=pooling_task or one.task)) for prompt, one in zip(many, each, strict=True)]
        return [with_tensor(output) for output in self._pool(prepared, use_tqdm, others)]

    def reward(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[PoolingRequestOutput]:
        """What the model's head makes of each token of each prompt, as ``encode`` gives it."""
        return self.encode(prompts, pooling_task="token_classify", **options)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        use_tqdm: Shown = True,
        pooling_params: PoolingParams | None = None,
        **others: Any,
    ) -> list[PoolingRequestOutput]:
        """The prompts' vectors, as lists in ``outputs.embedding``."""
        outputs = self._pool(_with_task(prompts, "embed", pooling_params), use_tqdm, others)
        return [replace(output, outputs=EmbeddingOutput(output.outputs.data.tolist())) for output in outputs]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        use_tqdm: Shown = True,
        pooling_params: PoolingParams | None = None,
        **others: Any,
    ) -> list[PoolingRequestOutput]:
        """The prompts' class probabilities, as lists in ``outputs.probs``."""
        outputs = self._pool(_with_task(prompts, "classify", pooling_params), use_tqdm, others)
        return [replace(output, outputs=ClassificationOutput(output.outputs.data.tolist())) for output in outputs]

    def score(
        self,
        data_1: str | Sequence[str],
        data_2: str | Sequence[str],
        use_tqdm: Shown = True,
        pooling_params: PoolingParams | None = None,
        instruction: str | None = None,
        **others: Any,
    ) -> list[PoolingRequestOutput]:
        """How well each pair of texts goes together, in ``outputs.score``: one query with all documents, or by twos.

        A model with a classifier judges each pair; of an embedding model it is the cosine of the two vectors.
        """
        queries, documents = (typed(_as_list(data), list[str], "data") for data in (data_1, data_2))
        scoring = Scoring(queries, documents, self.info, typed(instruction, str | None, "instruction"))
        params = _pooling_params(pooling_params, 1)[0].clone(task=scoring.task)
        return scoring.results(self._pool([(prompt, params) for prompt in scoring.prompts], use_tqdm, others))

    def _pool(
        self,
        prompts: Sequence[tuple[Prompt | tuple[str, str], PoolingParams]],
        use_tqdm: Shown,
        others: dict[str, Any],
    ) -> list[PoolingRequestOutput]:
        """Pool all prompts, each checked before anything runs."""
        options = tokenization(others)
        tracks = [self._pooling_track(prompt, params, **options) for prompt, params in prompts]
        by_length = sorted(tracks, key=lambda track: len(track.admitted.token_ids))  # a CPU attends the like together
        self._finish(by_length, use_tqdm)
        return [track.result() for track in tracks]

    # -- the engine -------------------------------------------------------------------------------------------------

    sleep, wake_up = _absent("sleep mode"), _absent("sleep mode")
    collective_rpc, apply_model = _absent("workers to be called"), _absent("workers to be called")

    def get_metrics(self) -> list[Metric]:
        """What the metrics of docs/metrics.md stand at. Raises ``RequestError`` unless they are kept."""
        if self._metrics is None:
            raise RequestError("get_metrics needs an LLM that was started with disable_log_stats=False.")
        return readings(self._metrics.registry)

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        """Forget which KV blocks hold which prompts, True; with ``reset_running_requests`` those compute theirs anew.

        ``reset_connector`` asks for nothing: there is no connector.
        """
        self._alive.reset_prefix_cache(reset_running_requests)
        return True

    def start_profile(self) -> None:
        """Begin to record a profile, as ``profiler_config`` says. Raises ``ProfilerActiveError``, ``ProfilerError``."""
        self._profile(start=True)

    def stop_profile(self) -> list[str]:
        """End the profile, if one is being recorded; the last one's files."""
        return self._profile(start=False)

    def _profile(self, start: bool) -> list[str]:
        profiled = self._alive.profile(start)
        if profiled.error is not None:
            raise ProfilerActiveError(profiled.error) if profiled.was_active else ProfilerError(profiled.error)
        return profiled.files

    def shutdown(self) -> None:
        """Free the model and its memory."""
        self._engine = None
        free_memory()

    @property
    def _alive(self) -> Engine:
        if self._engine is None:
            raise RequestError("This LLM has been shut down.")
        return self._engine

    def _params(self, given: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
        each = _one_each(self.get_default_sampling_params() if given is None else given, count, "sampling parameters")
        return [of_kind(one, SamplingParams, "sampling_params") for one in each]

    def _tracks(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        others: dict[str, Any],
    ) -> list[Track]:
        options = tokenization(others)
        many = _as_list(prompts)
        params = self._params(sampling_params, len(many))
        urgency = _one_each(priority or 0, len(many), "priorities")
        return [self._track(*one, **options) for one in zip(many, params, urgency, strict=True)]

    def _track(self, prompt: Prompt, params: SamplingParams, priority: int = 0, **options: Any) -> Track:
        admitted = self.door.admit(prompt, params, **options)
        if admitted.grammar is not None:
            check_grammar(admitted.grammar)
        return new_track(next(self._ids), admitted, self.door, priority)

    def _pooling_track(
        self, prompt: Prompt | tuple[str, str], params: PoolingParams, priority: int = 0, **options: Any
    ) -> PoolingTrack:
        return PoolingTrack(next(self._ids), self.door.admit_pooling(prompt, params, **options), self.door, priority)

    def _abort(self, request_id: str) -> None:
        self._alive.abort(self._tracker.abort(request_id))

    def _submit(self, track: Track) -> None:
        self._tracker.add(track)
        for submit in track.submits():
            self._alive.submit(submit)

    def _step(self) -> dict[str, Track]:
        """One engine step; returns the requests that it changed."""
        changed, stopped, following = self._tracker.take(self._alive.step(), time.monotonic())
        if self._metrics is not None:
            self._tracker.take_stats(self._alive.scheduler.stats())
        self._alive.abort(stopped)
        for submit in following:
            self._alive.submit(submit)
        return changed

    def _run(self, tracks: list[Track], use_tqdm: Shown) -> list[RequestOutput]:
        self._finish(tracks, use_tqdm)
        return [_final(track) for track in tracks]

    def _finish(self, tracks: Sequence[Track], use_tqdm: Shown) -> None:
        """Step the engine until all ``tracks`` are finished; the requests of others advance with them."""
        waiting = {track.request_id for track in tracks}
        try:
            for track in tracks:
                self._submit(track)
            with prompt_progress(len(tracks), use_tqdm) as ended:
                while waiting:
                    for request_id, track in self._step().items():
                        if track.finished and request_id in waiting:
                            waiting.remove(request_id)
                            ended(track.metrics.num_generation_tokens)
        except BaseException:  # an interrupt leaves nothing running
            for request_id in waiting:
                self._abort(request_id)
            raise


def free_memory(shutdown_ray: bool = False) -> None:
    """Free the models that nobody holds any more; vLLM's name for it is ``cleanup_dist_env_and_memory``."""
    gc.unfreeze()  # what an engine's start froze
    gc.collect()


def _name(processor: Any) -> Any:
    """A logits processor's class as the option names it; what is no class is left to the option to judge."""
    return f"{processor.__module__}:{processor.__qualname__}" if isinstance(processor, type) else processor


def _one_each(given: T | Sequence[T], count: int, kind: str) -> list[T]:
    """What each of ``count`` prompts has: all the same, or as many as there are prompts."""
    if not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise RequestError(f"There are {count} prompts but {len(given)} {kind}.")
    return list(given)


def _with_task(
    prompts: Prompt | Sequence[Prompt], task: str, params: PoolingParams | None
) -> list[tuple[Prompt | tuple[str, str], PoolingParams]]:
    [params] = _pooling_params(params, 1)
    return [(prompt, params.clone(task=task)) for prompt in _as_list(prompts)]


def _pooling_params(given: PoolingParams | Sequence[PoolingParams] | None, count: int) -> list[PoolingParams]:
    each = _one_each(PoolingParams() if given is None else given, count, "pooling parameters")
    return [of_kind(one, PoolingParams, "pooling_params") for one in each]


def _final(track: Track) -> RequestOutput:
    if track.error is not None:
        raise RequestError(track.error)
    track.params = track.params.clone(output_kind=OutputKind.CUMULATIVE)
    output = track.output()
    assert output is not None  # a cumulative output always is
    return output


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, told apart: a list of integers is one prompt of token ids."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray):
        raise RequestError(f"A prompt is a text or a list of token ids, got {prompts!r}.", "prompt")
    many: list[Any] = list(prompts)
    return [many] if many and all(isinstance(item, int) for item in many) else many
