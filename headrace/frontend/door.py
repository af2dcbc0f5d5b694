"""The way in, common to both handles on engines: prompts become token ids, and every check is made.

Owns no requests: what passes here may be queued. Knows the tokenizer and the model's limits; knows no HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Required, TypedDict

from msgspec.structs import replace

from headrace.config import Config
from headrace.config.plugin import load_class
from headrace.config.structured import structured_settings
from headrace.errors import RequestError
from headrace.frontend.chat import load_chat_template, own_template
from headrace.frontend.embeds import taken
from headrace.frontend.grammar import grammar_of
from headrace.frontend.parsers.choose import choose_formats, place_of
from headrace.frontend.parsers.marks import Marks
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.validation import (
    check_embeds_enabled,
    check_embeds_params,
    check_generates,
    check_params,
    check_pooled_prompt,
    check_prompt,
    check_text,
    settled,
)
from headrace.models.source import ModelFiles
from headrace.types import Embeds, EngineInfo, OutputKind, PoolingParams, SamplingParams, Thinking


class TextPrompt(TypedDict, total=False):
    """A prompt as vLLM's users may write it. ``cache_salt`` separates what the prefix cache keeps of it."""

    prompt: Required[str]
    cache_salt: str | None


class TokensPrompt(TypedDict, total=False):
    """The same of token ids; ``prompt`` is the text they stand for, and only handed back."""

    prompt_token_ids: Required[list[int]]
    prompt: str | None
    cache_salt: str | None


# A text, its token ids, or a dictionary: those above, or {"prompt_embeds": a tensor [tokens, dim]}.
Prompt = str | list[int] | Mapping[str, Any]
POOLED = SamplingParams(max_tokens=1, ignore_eos=True, detokenize=False, output_kind=OutputKind.FINAL_ONLY)


@dataclass(frozen=True)
class Admitted:
    """A prompt that has passed every check, and what its sequences are to be generated (or pooled) by."""

    text: str | None  # of the prompt, if it came so
    token_ids: list[int]
    params: SamplingParams
    grammar: str | None = None  # in the engine's notation; whether it compiles in time is checked apart
    thinking: Thinking | None = None
    embeds: Embeds | None = None  # the prompt, if it came so
    pooling: PoolingParams | None = None
    cache_salt: str | None = None  # that came with the prompt


class Door:
    """Turns prompts into token ids that the engine may be given.

    ``chat_template``: the text of the one that stands in for the model's own. ``formats`` and ``marks``: how answers
    show tool calls and reasoning.
    """

    def __init__(self, config: Config, info: EngineInfo, tokenizer: Tokenizer | None):
        self.config, self.info, self.tokenizer = config, info, tokenizer
        processors = [load_class("--logits-processors", path) for path in config.model.logits_processors]
        self._validators = [processor.validate_params for processor in processors]
        self.structured = structured_settings(config.frontend.structured_outputs_config)
        self.chat_template = load_chat_template(config.frontend.chat_template)
        self.formats = choose_formats(config, self.chat_template or own_template(tokenizer))
        reasoning = self.formats.reasoning
        self.marks = Marks(reasoning, tokenizer) if tokenizer and reasoning else None

    def admit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> Admitted:
        """Raises ``RequestError`` if the prompt, or ``params`` with it, can't be served."""
        check_generates(self.info)
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling_params must be SamplingParams, got {params!r}.", "sampling_params")
        if truncate_prompt_tokens is None:
            self._check_text(prompt, "input_tokens")
        if (embeds := self._embeds_of(prompt)) is not None:
            check_embeds_params(params, truncate_prompt_tokens)
            token_ids = [0] * (len(embeds.data) // (4 * self.info.hidden_size))  # there are no ids: so many positions
        else:
            token_ids = self._token_ids(prompt, add_special_tokens)
        if truncate_prompt_tokens is not None:
            keep = self.info.max_model_len - 1 if truncate_prompt_tokens == -1 else truncate_prompt_tokens
            token_ids = token_ids[-keep:] if keep > 0 else []
        check_prompt(token_ids, self.info)
        check_params(params, len(token_ids), self.config, self.info)
        if params.stop or params.bad_words:
            self.needed_tokenizer("stop and bad_words need", "stop")
        for validate in self._validators:
            try:
                validate(params)
            except ValueError as error:
                raise RequestError(str(error), "vllm_xargs") from error
        grammar, thinking = self._grammar(params), self._thinking(params, token_ids)
        salt = _cache_salt_of(prompt)
        return Admitted(self._text_of(prompt), token_ids, params, grammar, thinking, embeds, cache_salt=salt)

    def needed_tokenizer(self, who: str = "This needs", param: str | None = None) -> Tokenizer:
        """The tokenizer. Raises ``RequestError``, which begins with ``who``, if there is none."""
        if self.tokenizer is None:
            raise RequestError(f"{who} a tokenizer, and --skip-tokenizer-init left it out.", param)
        return self.tokenizer

    def _embeds_of(self, prompt: Prompt) -> Embeds | None:
        """The prompt as embeddings, if that is how it came. Raises ``RequestError`` if they can't be a prompt."""
        if not isinstance(prompt, dict) or "prompt_embeds" not in prompt:
            return None
        if len(prompt) > 1:
            raise RequestError("A prompt dictionary that holds prompt_embeds holds nothing else.", "prompt_embeds")
        check_embeds_enabled(self.config)
        return taken(prompt["prompt_embeds"], self.info)

    def _grammar(self, params: SamplingParams) -> str | None:
        """The grammar that the output must match, in the engine's notation. Raises ``RequestError``."""
        wanted, settings = params.structured_outputs, self.structured
        if wanted is None:
            return None
        self.needed_tokenizer("Structured outputs need", "structured_outputs")
        compact = wanted.disable_any_whitespace or settings.disable_any_whitespace
        closed = wanted.disable_additional_properties or settings.disable_additional_properties
        return grammar_of(replace(wanted, disable_any_whitespace=compact, disable_additional_properties=closed))

    def placed(self, params: SamplingParams, prompt: str, continued: str | None) -> SamplingParams:
        """``params`` of a chat, saying where the answer to ``prompt`` (going on with ``continued``) begins."""
        if self.marks is None:
            return params
        return params.clone(reasoning=place_of(self.marks.format, prompt, continued))

    def _thinking(self, params: SamplingParams, prompt: list[int]) -> Thinking | None:
        """How the engine is to follow the reasoning of an answer, if it has to. Raises ``RequestError``."""
        budget = None if params.thinking_token_budget == -1 else params.thinking_token_budget
        binds = params.structured_outputs is not None
        if budget is not None and self.marks is None:
            raise RequestError(
                "thinking_token_budget needs a model whose reasoning can be told: --reasoning-parser names its format.",
                "thinking_token_budget",
            )
        if binds and self.structured.enable_in_reasoning:
            if budget is not None:
                message = "thinking_token_budget can't be kept here: structured outputs hold for reasoning, too."
                raise RequestError(message, "thinking_token_budget")
            return None
        if self.marks is None or (budget is None and not (binds and params.reasoning)):
            return None
        return self.marks.thinking(params.reasoning or self.marks.place_after(prompt), budget)

    def admit_pooling(
        self,
        prompt: Prompt | tuple[str, str],
        params: PoolingParams,
        add_special_tokens: bool = True,
        truncate_prompt_tokens: int | None = None,
    ) -> Admitted:
        """A prompt (maybe a pair of texts) to be pooled. Texts are cut at their end, special tokens stay.

        Raises ``RequestError`` if it, or ``params`` with it, can't be served.
        """
        if truncate_prompt_tokens is not None:
            params = params.clone(truncate_prompt_tokens=truncate_prompt_tokens)
        params = settled(params, self.info)
        add_special_tokens = add_special_tokens and self.info.pair_template is None  # which is complete in itself
        if params.truncate_prompt_tokens is None:
            for part in prompt if isinstance(prompt, tuple) else (prompt,):
                self._check_text(part, "input")
        if isinstance(prompt, tuple):
            token_ids, params.second_segment = self._text_tokenizer().encode_pair(*prompt)
        else:
            token_ids = self._token_ids(prompt, add_special_tokens)
        if params.truncate_prompt_tokens is not None:
            most = self.info.max_model_len if params.truncate_prompt_tokens == -1 else params.truncate_prompt_tokens
            if len(token_ids) > most:
                closing = min(self._num_closing(prompt, add_special_tokens), most)
                token_ids = token_ids[: most - closing] + token_ids[len(token_ids) - closing :]
        check_pooled_prompt(token_ids, self.info)
        return Admitted(None, token_ids, POOLED, pooling=params, cache_salt=_cache_salt_of(prompt))

    def _text_of(self, prompt: Prompt) -> str | None:
        """The prompt as text, if that is how it came."""
        if isinstance(prompt, dict):
            prompt = prompt.get("prompt", [])
        return prompt if isinstance(prompt, str) else None

    def _check_text(self, prompt: Prompt, param: str) -> None:
        if (text := self._text_of(prompt)) is not None and self.tokenizer is not None:
            check_text(text, self.tokenizer.longest_token, self.info, param)

    def _token_ids(self, prompt: Prompt, add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, dict):
            given = {name for name, value in prompt.items() if value is not None}
            if given - {"prompt", "prompt_token_ids", "cache_salt"} or not given - {"cache_salt"}:
                raise RequestError(
                    "A prompt dictionary holds prompt or prompt_token_ids, or, to go on from, prompt_embeds; "
                    "cache_salt may stand beside them.",
                    "prompt",
                )
            prompt = prompt["prompt_token_ids"] if "prompt_token_ids" in given else prompt["prompt"]
        if isinstance(prompt, str):
            return self._text_tokenizer().encode(prompt, add_special_tokens)
        if not isinstance(prompt, list) or not set(map(type, prompt)) <= {int}:  # booleans are none
            raise RequestError("A prompt is a text or a list of token ids.", "prompt")
        return prompt

    def _num_closing(self, prompt: Prompt | tuple[str, str], add_special_tokens: bool) -> int:
        """How many tokens at a prompt's end are none of its text, and stay when it is cut."""
        if not isinstance(prompt, tuple) and self._text_of(prompt) is None:
            return 0
        if self.info.pair_template is not None:
            closing = self.info.pair_template.rpartition("{document}")[2]
            return len(self._text_tokenizer().encode(closing, add_special_tokens=False))
        return self._text_tokenizer().num_closing if add_special_tokens else 0

    def _text_tokenizer(self) -> Tokenizer:
        return self.needed_tokenizer("Text prompts need", "prompt")


def _cache_salt_of(prompt: Prompt | tuple[str, str]) -> str | None:
    salt = prompt.get("cache_salt") if isinstance(prompt, dict) else None
    if salt is not None and (not isinstance(salt, str) or not salt):
        raise RequestError("cache_salt must be a text that is not empty.", "cache_salt")
    return salt


def load_tokenizer(files: ModelFiles, config: Config) -> Tokenizer | None:
    return None if config.model.skip_tokenizer_init else Tokenizer.load(files, config)
