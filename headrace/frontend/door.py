"""The way in, common to both handles on engines: prompts become token ids, and every check is made.

Owns no requests: what passes here may be queued. Knows the tokenizer and the model's limits; knows no HTTP.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Required, TypedDict

import msgspec
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
    CacheSalt,
    check_embeds_enabled,
    check_embeds_params,
    check_generates,
    check_params,
    check_pooled_prompt,
    check_prompt,
    check_text,
    of_kind,
    settled,
)
from headrace.models.source import ModelFiles
from headrace.params import typed
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


class Given(msgspec.Struct):
    """What a prompt came as, and beside it."""

    prompt: str | None = None
    prompt_token_ids: list[int] | None = None
    prompt_embeds: Any = None
    cache_salt: CacheSalt | None = None


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
        params = of_kind(params, SamplingParams, "sampling_params").clone()  # whose owner may have changed a field
        given = given_as(prompt)
        if truncate_prompt_tokens is None:
            self._check_text(given.prompt, "input_tokens")
        embeds = None
        if given.prompt_embeds is not None:
            check_embeds_enabled(self.config)
            check_embeds_params(params, truncate_prompt_tokens)
            embeds = taken(given.prompt_embeds, self.info)
            token_ids = [0] * (len(embeds.data) // (4 * self.info.hidden_size))  # there are no ids: so many positions
        else:
            token_ids = self._token_ids(given, add_special_tokens)
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
        return Admitted(given.prompt, token_ids, params, grammar, thinking, embeds, cache_salt=given.cache_salt)

    def needed_tokenizer(self, who: str = "This needs", param: str | None = None) -> Tokenizer:
        """The tokenizer. Raises ``RequestError``, which begins with ``who``, if there is none."""
        if self.tokenizer is None:
            raise RequestError(f"{who} a tokenizer, and --skip-tokenizer-init left it out.", param)
        return self.tokenizer

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
        params = of_kind(params, PoolingParams, "pooling_params")
        if truncate_prompt_tokens is not None:
            params = params.clone(truncate_prompt_tokens=truncate_prompt_tokens)
        params = settled(params, self.info)
        add_special_tokens = add_special_tokens and self.info.pair_template is None  # which is complete in itself
        pair = typed(prompt, tuple[str, str], "prompt") if isinstance(prompt, tuple) else None
        given = Given() if isinstance(prompt, tuple) else given_as(prompt)
        if params.truncate_prompt_tokens is None:
            for text in pair or (given.prompt,):
                self._check_text(text, "input")
        if pair:
            token_ids, params.second_segment = self._text_tokenizer().encode_pair(*pair)
        else:
            token_ids = self._token_ids(given, add_special_tokens)
        if params.truncate_prompt_tokens is not None:
            most = self.info.max_model_len if params.truncate_prompt_tokens == -1 else params.truncate_prompt_tokens
            if len(token_ids) > most:
                closing = min(self._num_closing(add_special_tokens), most) if pair or given.prompt is not None else 0
                token_ids = token_ids[: most - closing] + token_ids[len(token_ids) - closing :]
        check_pooled_prompt(token_ids, self.info)
        return Admitted(None, token_ids, POOLED, pooling=params, cache_salt=given.cache_salt)

    def _check_text(self, text: str | None, param: str) -> None:
        if text is not None and self.tokenizer is not None:
            check_text(text, self.tokenizer.longest_token, self.info, param)

    def _token_ids(self, given: Given, add_special_tokens: bool) -> list[int]:
        if given.prompt_token_ids is not None:
            return given.prompt_token_ids
        if given.prompt is None:
            raise RequestError("A prompt to be pooled is a text or a list of token ids.", "prompt")
        return self._text_tokenizer().encode(given.prompt, add_special_tokens)

    def _num_closing(self, add_special_tokens: bool) -> int:
        """How many tokens at the end of texts are none of theirs, and stay when they are cut."""
        if self.info.pair_template is not None:
            closing = self.info.pair_template.rpartition("{document}")[2]
            return len(self._text_tokenizer().encode(closing, add_special_tokens=False))
        return self._text_tokenizer().num_closing if add_special_tokens else 0

    def _text_tokenizer(self) -> Tokenizer:
        return self.needed_tokenizer("Text prompts need", "prompt")


def given_as(prompt: Prompt) -> Given:
    """Raises ``RequestError`` for what is no prompt."""
    if isinstance(prompt, str):
        return Given(prompt)
    if isinstance(prompt, list):
        return Given(prompt_token_ids=typed(prompt, list[int], "prompt"))
    if not isinstance(prompt, Mapping):
        raise RequestError("A prompt is a text or a list of token ids.", "prompt")
    fields = {name: value for name, value in prompt.items() if value is not None}
    if not fields.keys() <= set(Given.__struct_fields__) or not fields.keys() - {"cache_salt"}:
        raise RequestError(
            "A prompt dictionary holds prompt or prompt_token_ids, or, to go on from, prompt_embeds; "
            "cache_salt may stand beside them.",
            "prompt",
        )
    if "prompt_embeds" in fields and len(fields) > 1:
        raise RequestError("A prompt dictionary that holds prompt_embeds holds nothing else.", "prompt_embeds")
    return typed(fields, Given, "prompt")


def load_tokenizer(files: ModelFiles, config: Config) -> Tokenizer | None:
    return None if config.model.skip_tokenizer_init else Tokenizer.load(files, config)
