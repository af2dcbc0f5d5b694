"""vLLM's LLMEngine: an LLM whose caller adds requests and makes each step. Owns the callers' names of its requests."""

from types import SimpleNamespace
from typing import Any

from headrace.errors import RequestError
from headrace.frontend.door import Prompt
from headrace.frontend.llm import LLM
from headrace.frontend.pooling import PoolingTrack, with_tensor
from headrace.frontend.tracker import Track
from headrace.frontend.validation import tokenization
from headrace.params import typed
from headrace.types import PoolingParams, PoolingRequestOutput, RequestOutput, SamplingParams


class LLMEngine:
    """``add_request``, then ``step`` while ``has_unfinished_requests``; ``llm`` may be used in between.

    It is an LLM's other face, and lives on the LLM's own steps.
    """

    def __init__(self, llm: LLM):
        self.llm = llm
        self._tracks: dict[str, Track] = {}  # by the caller's id
        self.get_tokenizer, self.reset_prefix_cache = llm.get_tokenizer, llm.reset_prefix_cache
        self.start_profile, self.stop_profile, self.get_metrics = llm.start_profile, llm.stop_profile, llm.get_metrics

    @classmethod
    def from_engine_args(cls, engine_args: Any) -> "LLMEngine":
        return cls(LLM.from_engine_args(engine_args))

    @property
    def model_config(self) -> Any:
        return self.llm.model_config

    @property
    def vllm_config(self) -> SimpleNamespace:
        """All options, in groups under vLLM's names for them."""
        groups = {f"{name}_config": options for name, options in vars(self.llm.config).items()}
        return SimpleNamespace(**groups | {"model_config": self.model_config})

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        arrival_time: float | None = None,
        priority: int = 0,
        **others: Any,
    ) -> str:
        """Queue one request. Raises ``RequestError`` if it can't be served or its id is in use."""
        if typed(request_id, str, "request_id") in self._tracks:
            raise RequestError(f"The request id {request_id} is in use.", "request_id")
        options = tokenization(others)
        if isinstance(params, PoolingParams):
            track: Track = self.llm._pooling_track(prompt, params, priority, **options)
        else:
            track = self.llm._track(prompt, params, priority, **options)
        self._tracks[request_id] = track
        self.llm._submit(track)
        return request_id

    def step(self) -> list[RequestOutput | PoolingRequestOutput]:
        """One engine step; what there is to tell of each request it changed, as its output kind asks."""
        changed = self.llm._step() if any(not track.finished for track in self._tracks.values()) else {}
        outputs: list[RequestOutput | PoolingRequestOutput] = []
        for request_id, track in list(self._tracks.items()):
            if track.request_id not in changed and not track.finished:
                continue
            output = with_tensor(track.result()) if isinstance(track, PoolingTrack) else track.output()
            if track.finished:
                del self._tracks[request_id]
            if output is not None:
                output.request_id = request_id
                outputs.append(output)
        return outputs

    def abort_request(self, request_ids: list[str] | str) -> None:
        """End requests, of which nothing more is told."""
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            if (track := self._tracks.pop(request_id, None)) is not None:
                self.llm._abort(track.request_id)

    def get_num_unfinished_requests(self) -> int:
        return len(self._tracks)

    def has_unfinished_requests(self) -> bool:
        return bool(self._tracks)
