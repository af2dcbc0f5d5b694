"""The checks a request must pass before anything is queued: the one validator of every route and handle.

Ranges of single fields are ``SamplingParams``' own; here are those that need the model. Knows no engine and no HTTP.
"""

from collections.abc import Iterable
from typing import Any

from headrace.config import Config
from headrace.errors import RequestError
from headrace.types import EngineInfo, OutputKind, SamplingParams

MAX_BAD_WORDS = 1024
MAX_BEAM_WIDTH = 128  # each step looks at so many tokens after each of so many sequences
UNSEARCHABLE: dict[str, Any] = {  # what a beam search can't obey: the fields, and the values that ask for nothing
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "min_tokens"), 0),
    **dict.fromkeys(("allowed_token_ids", "logit_bias", "structured_outputs", "thinking_token_budget")),
    "repetition_penalty": 1.0,
    "stop": [],
    "bad_words": [],
}
BEAMS_ONLY = {"length_penalty": 1.0, "early_stopping": False}


def check_prompt(token_ids: list[int], info: EngineInfo) -> None:
    """Raise ``RequestError`` unless the model can go on from this prompt."""
    if not token_ids:
        raise RequestError("The prompt is empty; it needs at least one token.", "prompt")
    if len(token_ids) >= info.max_model_len:
        raise RequestError(
            f"The prompt has {len(token_ids)} tokens, but the model's context is {info.max_model_len} tokens and must "
            "hold at least one output token too; shorten the prompt.",
            "input_tokens",
        )
    _check_ids(token_ids, info.vocab_size, "prompt")


def check_pooled_prompt(token_ids: list[int], info: EngineInfo) -> None:
    """Raise ``RequestError`` unless the model can pool this prompt."""
    if not token_ids:
        raise RequestError("The prompt is empty; it needs at least one token.", "input")
    if len(token_ids) > info.max_model_len:
        raise RequestError(
            f"The prompt has {len(token_ids)} tokens, but the model takes {info.max_model_len}; shorten it, or have it "
            "cut with truncate_prompt_tokens -1.",
            "input",
        )
    _check_ids(token_ids, info.vocab_size, "input")


def check_generates(info: EngineInfo) -> None:
    """Raise ``RequestError`` if the model pools prompts instead of generating."""
    if "generate" not in info.tasks:
        use = "/v1/embeddings or /pooling" if "embed" in info.tasks else "/rerank, /score or /classify"
        raise RequestError(f"This model does not generate text; it can {info.tasks[0]}: use {use}.", "model")


def check_params(params: SamplingParams, num_prompt_tokens: int, config: Config, info: EngineInfo) -> None:
    """Raise ``RequestError`` if ``params`` ask for what this model or server can't give."""
    room = info.max_model_len - num_prompt_tokens
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(
            f"max_tokens {params.max_tokens} is too large: the context of {info.max_model_len} tokens leaves {room} "
            f"after the prompt's {num_prompt_tokens}.",
            "max_tokens",
        )
    if params.min_tokens > room:
        raise RequestError(f"min_tokens {params.min_tokens} is more than the {room} the context leaves.", "min_tokens")
    if params.allowed_token_ids is not None and not params.allowed_token_ids:
        raise RequestError("allowed_token_ids can't be empty.", "allowed_token_ids")
    _check_ids(params.allowed_token_ids or (), info.vocab_size, "allowed_token_ids")
    _check_ids(params.logit_bias or (), info.vocab_size, "logit_bias")
    _check_ids(params.stop_token_ids, info.vocab_size, "stop_token_ids")
    for value in (params.logit_bias or {}).values():
        if not -100 <= value <= 100:
            raise RequestError(f"logit_bias values must be in [-100, 100], got {value}.", "logit_bias")
    for name in ("logprobs", "prompt_logprobs"):
        _check_logprobs(name, getattr(params, name), config, info)
    _check_search(params, config)
    if len(params.bad_words) > MAX_BAD_WORDS:
        raise RequestError(f"bad_words can hold at most {MAX_BAD_WORDS} words.", "bad_words")
    if not all(word.strip() for word in params.bad_words):
        raise RequestError("bad_words can't contain an empty string.", "bad_words")
    if params.top_k >= 2**31:
        raise RequestError("top_k must be less than 2**31.", "top_k")


def _check_search(params: SamplingParams, config: Config) -> None:
    """Beams are ranked by log-probabilities, as the engine reports them; what changes those can't be obeyed."""
    beams, stopping, mode = params.use_beam_search, params.early_stopping, config.model.logprobs_mode
    if params.output_kind is OutputKind.DELTA and (beams or params.best_of):
        name = "use_beam_search" if beams else "best_of"
        raise RequestError(f"With {name} nothing is settled before the end, so it can't be streamed.", "stream")
    for name, neutral in (UNSEARCHABLE if beams else BEAMS_ONLY).items():
        if (asked := getattr(params, name)) != neutral and asked != {}:
            reason = "can't go with use_beam_search" if beams else "is a beam search's; it needs use_beam_search"
            raise RequestError(f"{name} {reason}.", name)
    if not (isinstance(stopping, bool) or stopping == "never"):
        raise RequestError(f'early_stopping must be true, false or "never", got {stopping!r}.', "early_stopping")
    if beams and params.num_sequences > MAX_BEAM_WIDTH:
        message = f"A beam search may be {MAX_BEAM_WIDTH} sequences wide, got {params.num_sequences}."
        raise RequestError(message, "best_of" if params.best_of else "n")
    if beams and (mode.endswith("logits") or config.model.logits_processors):
        flag = f"--logprobs-mode {mode}" if mode.endswith("logits") else "--logits-processors"
        raise RequestError(f"Beam search can't be used on a server with {flag}.", "use_beam_search")


def _check_logprobs(name: str, value: int | None, config: Config, info: EngineInfo) -> None:
    if value is None:
        return
    most = config.model.max_logprobs
    wanted = info.vocab_size if value == -1 else value
    if most != -1 and wanted > most:
        raise RequestError(f"{name} must be at most {most} (--max-logprobs), got {value}.", name)
    if wanted > info.vocab_size:
        raise RequestError(f"{name} must be at most the vocabulary's {info.vocab_size}, got {value}.", name)


def _check_ids(token_ids: Iterable[int], vocab_size: int, param: str) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{param} has token id {token_id}; the vocabulary has 0 to {vocab_size - 1}.", param)
