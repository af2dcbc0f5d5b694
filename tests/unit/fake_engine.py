"""A scripted stand-in for AsyncLLM: no process, no model; every sequence answers with a given text, char by char."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from headrace.config import Config
from headrace.errors import EngineDeadError, QueueFullError, RequestError, ShuttingDownError
from headrace.frontend.door import Admitted, Door
from headrace.frontend.validation import check_params
from headrace.types import (
    CompletionOutput,
    EngineInfo,
    LedgerEntry,
    Logprob,
    OutputKind,
    Progress,
    RequestOutput,
    SamplingParams,
    StepCost,
)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB_SIZE = 256
MODEL_LEN = 512


class CharTokenizer:
    """One token a character below 256; ``hf`` is a real transformers tokenizer."""

    def __init__(self, chat_template: str | dict[str, str] | None = CHATML):
        fast = FastTokenizer(WordLevel({chr(i): i for i in range(VOCAB_SIZE)}, unk_token="?"))
        fast.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
        fast.decoder = decoders.Fuse()
        self.hf = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="\x02", eos_token="\x03")
        self.hf.chat_template = chat_template
        self.vocab_size = VOCAB_SIZE
        self.longest_token = 1

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [2] * add_special_tokens + self.hf.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(i) for i in ids if not (skip_special_tokens and i in (2, 3)))

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def token_strings(self, ids: list[int]) -> list[str]:
        return [chr(i) for i in ids]


class FakeEngine:
    """``gate`` (if set) is awaited before each token but the first; ``fail`` (if set) is raised after the first."""

    def __init__(self, config: Config, reply: str = "Hello", chat_template: str | None = CHATML):
        self.config = config
        self.served_names = config.model.served_model_name or ["fake"]
        self.tokenizer = CharTokenizer(chat_template)
        self.reply = reply
        self.info = EngineInfo(
            architecture="Fake",
            device="cpu",
            dtype="float32",
            vocab_size=VOCAB_SIZE,
            max_model_len=MODEL_LEN,
            eos_token_ids=[3],
            block_size=16,
            num_blocks=64,
            kv_cache_tokens=1024,
            max_concurrency=2.0,
            default_sampling={},
            ledger=[LedgerEntry("weights", 1.5, 2**30)],
            cost=StepCost(0, 0, 0, 0, 0),
        )
        self.door = Door(config, self.info, None if config.model.skip_tokenizer_init else self.tokenizer)  # type: ignore[arg-type]
        self.observers: list[Any] = []
        self.calls: list[dict[str, Any]] = []
        self.prepared: list[list[int]] = []
        self.aborted: list[str] = []
        self.gate: Callable[[], Any] | None = None
        self.fail: Exception | None = None
        self.finish_reason = "stop"
        self.stop_reason: str | None = None
        self.queue_full = self.draining = False
        self.death: str | None = None
        self.died = asyncio.Event()
        self.num_unfinished = 0
        self.num_resets = 0

    @classmethod
    async def start(cls, config: Config, on_progress: Callable[[Progress], None] | None = None) -> "FakeEngine":
        if on_progress is not None:
            on_progress(Progress("Loading weights", 0, 10))
            on_progress(Progress("Loading weights", 10, 10))
        return cls(config)

    async def prepare(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> Admitted:
        if self.death is not None:
            raise EngineDeadError(self.death)
        if self.draining:
            raise ShuttingDownError("The server is shutting down.")
        if self.queue_full:
            raise QueueFullError("The queue is full.", retry_after=7)
        ids = self.tokenizer.encode(prompt, add_special_tokens) if isinstance(prompt, str) else prompt
        if not ids:
            raise RequestError("The prompt is empty.", "prompt")
        if len(ids) >= MODEL_LEN:
            raise RequestError(f"The prompt has {len(ids)} tokens; the model takes {MODEL_LEN}.", "input_tokens")
        ids = ids[-truncate_prompt_tokens:] if truncate_prompt_tokens else ids
        check_params(params, len(ids), self.config, self.info)
        self.prepared.append(ids)
        return Admitted(prompt if isinstance(prompt, str) else None, ids, params)

    async def run(self, admitted: Admitted, request_id: str, **options: Any) -> AsyncGenerator[RequestOutput, None]:
        prompt, params = admitted.token_ids, admitted.params
        self.calls.append({"prompt": prompt, "params": params, "request_id": request_id, **options})
        self.num_unfinished += 1
        finished = False
        try:
            length = len(self.reply) if params.max_tokens is None else min(len(self.reply), params.max_tokens)
            last_reason = self.finish_reason if length == len(self.reply) else "length"
            if params.output_kind is OutputKind.FINAL_ONLY:
                for position in range(1, length):
                    await self._step(position)
                finished = True
                yield self._output(request_id, prompt, params, range(params.n), 0, length, last_reason)
                return
            for position in range(length):
                await self._step(position)
                finished = position == length - 1
                for index in range(params.n):  # each sequence on its own, as they come
                    reason = last_reason if finished else None
                    yield self._output(request_id, prompt, params, [index], position, position + 1, reason)
        finally:
            self.num_unfinished -= 1
            if not finished:
                self.aborted.append(request_id)

    async def _step(self, position: int) -> None:
        if position and self.fail is not None:
            raise self.fail
        if position and self.gate is not None:
            await self.gate()
        await asyncio.sleep(0)

    def _output(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        indices: Any,
        begin: int,
        end: int,
        reason: Any,
    ) -> RequestOutput:
        text = self.reply[begin:end]
        ids = [ord(char) for char in text]
        return RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=prompt,
            outputs=[
                CompletionOutput(
                    index=index,
                    text=text,
                    token_ids=ids,
                    logprobs=None if params.logprobs is None else [position(i, params.logprobs) for i in ids],
                    finish_reason=reason,
                    stop_reason=self.stop_reason if reason else None,
                )
                for index in indices
            ],
            finished=reason is not None,
            prompt_logprobs=(
                None
                if params.prompt_logprobs is None or begin
                else [None, *(position(i, params.prompt_logprobs) for i in prompt[1:])]
            ),
            num_cached_tokens=1,
        )

    async def reset_prefix_cache(self, reset_running_requests: bool = False) -> None:
        self.num_resets += 1

    def health(self) -> str | None:
        return self.death

    def start_draining(self) -> None:
        self.draining = True

    async def wait_idle(self, timeout: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while self.num_unfinished and loop.time() < deadline:
            await asyncio.sleep(0.01)
        return not self.num_unfinished

    async def wait_dead(self) -> str:
        await self.died.wait()
        assert self.death is not None
        return self.death

    def die(self, reason: str) -> None:
        self.death = reason
        self.fail = EngineDeadError(reason)
        self.died.set()

    async def shutdown(self, timeout: float = 0) -> None:
        self.fail = ShuttingDownError("The server is shutting down.")
        self.gate = None


def position(token_id: int, num_top: int) -> dict[int, Logprob]:
    """The token itself at rank 2, -inf from rank 4 on, and the ones before it in the alphabet as the likeliest."""
    logprobs = {token_id: Logprob(-1.0, 2, chr(token_id))}
    for rank in range(1, num_top + 1):
        if rank != 2:
            lower = token_id - rank
            logprobs[lower] = Logprob(-0.5 * rank if rank < 4 else float("-inf"), rank, chr(lower))
    return logprobs
