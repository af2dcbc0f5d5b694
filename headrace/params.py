"""What a request may ask for: how to sample, which form the output has, how to pool.

Plain data (msgspec structs), as in ``headrace.types``, which is where other rooms import them from. Owns the ranges of
single fields; what depends on the model is ``frontend/validation.py``'s to check.
"""

import enum
import functools
from typing import Any, Literal, TypeVar, overload

import msgspec

from headrace.errors import RequestError

GREEDY_BELOW = 1e-5  # a temperature under this means greedy decoding
MAX_N = 16_384  # most sequences one request may ask for

ABSENT = {  # fields of vLLM's SamplingParams, and why they can't be obeyed
    "flat_logprobs": "logprobs are a dictionary a token",
    "watermarking": "this version does not mark its outputs yet",
    "repetition_detection": "this version does not look for repetitions yet",
    "prompt_logprob_token_ids": "prompt_logprobs are those of the prompt and the likeliest tokens",
    "prompt_logprob_start": "prompt_logprobs are those of the whole prompt",
    "routed_experts_prompt_start": "this version does not tell which experts it used",
    "skip_clone": "parameters are always copied",
}


T = TypeVar("T")


@overload
def typed(given: Any, kind: type[T], what: str) -> T: ...
@overload
def typed(given: Any, kind: Any, what: str) -> Any: ...
def typed(given: Any, kind: Any, what: str) -> Any:
    """``given`` as a ``kind``, which may be a type of msgspec's or hold some: a list of a tuple, a struct of a mapping.

    Raises ``RequestError`` that names the field of a wrong type, or ``what`` if it is all of it.
    """
    try:
        return _converted(given, kind)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, RequestError):  # a value out of range, found by a struct's own checks
            raise error.__cause__ from None
        reason, _, path = str(error).partition(" - at ")
        inside = path.strip("`").rpartition("$")[2]
        place = inside[1:] if inside.startswith(".") else what + inside
        name = place.partition(".")[0].partition("[")[0]
        if place == what and "unknown field" in reason:
            reason += f"; it may hold {', '.join(kind.__struct_fields__)}"
        raise RequestError(f"{place} is invalid: {reason[0].lower()}{reason[1:]}.", name) from None
    except UnicodeError:
        raise RequestError(f"{what} has half of a character (a lone surrogate).", what) from None
    except RecursionError:
        raise RequestError(f"{what} is nested too deeply.", what) from None


def _converted(given: Any, kind: Any) -> Any:
    """NumPy's numbers and arrays are taken for plain ones and lists."""
    try:
        return msgspec.convert(given, kind, from_attributes=True, str_keys=True)
    except msgspec.ValidationError as error:
        if "`numpy." not in str(error):
            raise
        try:
            plain = msgspec.to_builtins(given, builtin_types=(bytes,), enc_hook=lambda value: value.tolist())
        except (AttributeError, TypeError):
            raise error from None
        return msgspec.convert(plain, kind, from_attributes=True, str_keys=True)


@functools.cache
def _annotations(kind: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A struct of the same fields, and nothing else."""
    return msgspec.defstruct(kind.__name__, [(field.name, field.type) for field in msgspec.structs.fields(kind)])


class Parameters(msgspec.Struct):
    """Fields that hold what they are annotated with, whatever they were given. Raises ``RequestError`` naming one
    that doesn't.
    """

    def __post_init__(self) -> None:
        found = typed(msgspec.structs.asdict(self), _annotations(type(self)), type(self).__name__)
        for name, value in zip(self.__struct_fields__, msgspec.structs.astuple(found), strict=True):
            setattr(self, name, value)


class OutputKind(enum.IntEnum):
    """What each output of a running request carries: all text so far, only what is new, or one final output."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class StructuredOutputsParams(Parameters, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The form an output must have: one of the first six, and how JSON is to be spaced. The fields are vLLM's.

    Raises ``RequestError`` unless exactly one form is asked for.
    """

    json: str | bool | dict[str, Any] | None = None  # a JSON schema
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # in Lark's notation, or GBNF
    structural_tag: str | dict[str, Any] | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None  # a regex: what may stand between JSON's tokens

    def __post_init__(self) -> None:
        super().__post_init__()
        forms = (self.json, self.regex, self.choice, self.grammar, self.structural_tag, self.json_object or None)
        if sum(form is not None for form in forms) != 1:
            raise RequestError(
                "structured_outputs needs exactly one of json, regex, choice, grammar, structural_tag and json_object.",
                "structured_outputs",
            )
        if self.choice is not None and not all(self.choice or [""]):
            raise RequestError("choice must be a list of texts that are not empty.", "structured_outputs")


class SamplingParams(Parameters, kw_only=True, omit_defaults=True, forbid_unknown_fields=True, dict=True):
    """How to sample one request; the fields and defaults are those of vLLM's ``SamplingParams``.

    Raises ``RequestError`` naming the field if a value is of another type or out of range.
    """

    n: int = 1
    best_of: int | None = None  # generate so many sequences, give the best n: of a beam search, its width
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] = []
    stop_token_ids: list[int] = []
    bad_words: list[str] = []
    allowed_token_ids: list[int] | None = None
    logit_bias: dict[int, float] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None  # whose logprobs are given, and not those of the likeliest
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: OutputKind = OutputKind.CUMULATIVE
    stream_interval: int | None = None  # tokens in a streamed chunk, where that is more than the server's own
    skip_reading_prefix_cache: bool | None = None  # compute the whole prompt
    trace_decode_token_ids: list[int] | None = None  # to generate, whatever the model would; max_tokens may cut it
    extra_args: dict[str, Any] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    guided_decoding: StructuredOutputsParams | None = None  # the older name
    thinking_token_budget: int | None = None  # of reasoning, whose end is forced then. None: no limit, nor is one -1
    # Whether a chat's answers begin within reasoning, may begin with it, or come after it: structured_outputs wait for
    # its end. None (no chat): they hold from the first token on.
    reasoning: Literal["inside", "open", "over"] | None = None
    # What vLLM's have besides, refused unless it asks for nothing.
    flat_logprobs: bool = False
    watermarking: bool | None = None
    repetition_detection: Any = None
    prompt_logprob_token_ids: Any = None
    prompt_logprob_start: int | None = None
    routed_experts_prompt_start: int = 0
    skip_clone: bool = False
    use_beam_search: bool = False
    length_penalty: float = 1.0  # a found sequence scores its log-probability / its length ** this
    early_stopping: bool | str = False  # end once enough are found, once better ones are unlikely, or "never" before

    def __post_init__(self) -> None:
        if self.structured_outputs and self.guided_decoding:
            message = "structured_outputs and guided_decoding are two names of one thing: give one of them."
            raise RequestError(message, "guided_decoding")
        self.structured_outputs, self.guided_decoding = self.structured_outputs or self.guided_decoding, None
        self.stop = [self.stop] if isinstance(self.stop, str) else [] if self.stop is None else self.stop
        self.stop_token_ids = [] if self.stop_token_ids is None else self.stop_token_ids
        self.bad_words = [] if self.bad_words is None else self.bad_words
        self.logprobs = 1 if self.logprobs is True else self.logprobs
        self.prompt_logprobs = 1 if self.prompt_logprobs is True else self.prompt_logprobs
        super().__post_init__()
        if self.top_k == -1:  # the older spelling of "off"
            self.top_k = 0
        self.best_of = None if self.best_of == self.n else self.best_of
        if self.logprob_token_ids:
            self.logprobs = 0
        if self.trace_decode_token_ids is not None:
            self._replay(self.trace_decode_token_ids)
        self._check()

    def _replay(self, trace: list[int]) -> None:
        """Let nothing but the trace's end, or ``max_tokens``, end it."""
        if not trace or self.structured_outputs or self.bad_words or self.thinking_token_budget is not None:
            others = "structured_outputs, bad_words and thinking_token_budget"
            raise RequestError(
                f"trace_decode_token_ids must not be empty, nor go with {others}.", "trace_decode_token_ids"
            )
        self.max_tokens = min(len(trace), self.max_tokens or len(trace))
        self.stop, self.stop_token_ids, self.min_tokens, self.ignore_eos = [], [], 0, True

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def num_sequences(self) -> int:
        """How many are generated, of which ``n`` are given."""
        return self.best_of or self.n

    @classmethod
    def from_optional(cls, **fields: Any) -> "SamplingParams":
        """The parameters that ``fields`` set, where None means the default (of ``max_tokens``: no limit)."""
        return cls(**{name: value for name, value in fields.items() if value is not None or name == "max_tokens"})

    def clone(self, **changes: Any) -> "SamplingParams":
        """A copy with ``changes`` applied and validated."""
        return msgspec.structs.replace(self, **changes)

    def _check(self) -> None:
        ranges = (
            ("n", 1 <= self.n <= MAX_N, f"between 1 and {MAX_N}"),
            ("best_of", not self.best_of or self.n <= self.best_of <= MAX_N, f"between n ({self.n}) and {MAX_N}"),
            ("presence_penalty", -2.0 <= self.presence_penalty <= 2.0, "in [-2, 2]"),
            ("frequency_penalty", -2.0 <= self.frequency_penalty <= 2.0, "in [-2, 2]"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf"), "greater than zero"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "non-negative"),
            ("top_p", 0.0 < self.top_p <= 1.0, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or -1 (off), or at least 1"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "in [0, 1]"),
            ("seed", self.seed is None or -(2**63) <= self.seed < 2**63, "a 64-bit integer"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("min_tokens", self.min_tokens >= 0, "non-negative"),
            ("thinking_token_budget", (self.thinking_token_budget or 0) >= -1, "-1 (no limit) or non-negative"),
            (
                "min_tokens",
                self.max_tokens is None or self.min_tokens <= self.max_tokens,
                f"at most max_tokens ({self.max_tokens})",
            ),
            ("logprobs", self.logprobs is None or self.logprobs >= -1, "-1 (all) or non-negative"),
            ("prompt_logprobs", self.prompt_logprobs is None or self.prompt_logprobs >= -1, "-1 (all) or non-negative"),
            ("stream_interval", self.stream_interval is None or self.stream_interval >= 1, "at least 1"),
            ("length_penalty", -10.0 <= self.length_penalty <= 10.0, "in [-10, 10]"),
        )
        for name, allowed in ABSENT.items():
            if getattr(self, name):
                raise RequestError(f"{name} must be left out: {allowed}.", name)
        for name, fine, allowed in ranges:
            if not fine:
                raise RequestError(f"{name} must be {allowed}, got {getattr(self, name)}.", name)
        if "" in self.stop:
            raise RequestError("stop can't contain an empty string.", "stop")
        if self.stop and not self.detokenize:
            raise RequestError("stop strings need detokenize=True; use stop_token_ids instead.", "stop")
        if self.greedy and self.num_sequences > 1 and not self.use_beam_search:
            name, count = ("best_of", self.best_of) if self.best_of else ("n", self.n)
            raise RequestError(f"{name} must be 1 with greedy sampling (temperature 0), got {count}.", name)


POOLING_TASKS = ("embed", "classify", "token_embed", "token_classify")


class PoolingParams(Parameters, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What to make of one prompt's hidden states; the fields are those of vLLM's ``PoolingParams``.

    Raises ``RequestError`` naming the field if a value is of another type or out of range.
    """

    task: str | None = None  # one of POOLING_TASKS; None: what the model is for
    dimensions: int | None = None  # keep the first ones of an embedding; None: all
    use_activation: bool | None = None  # normalise embeddings, make scores probabilities; None: as the model says
    truncate_prompt_tokens: int | None = None  # cut prompts to so many tokens; -1: to the model's length
    skip_reading_prefix_cache: bool | None = None  # compute the whole prompt
    second_segment: int | None = None  # where the second text of a pair begins, for models that mark it

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task is not None and self.task not in POOLING_TASKS:
            raise RequestError(f"task must be one of {', '.join(POOLING_TASKS)}, got {self.task!r}.", "task")
        if self.dimensions is not None and self.dimensions < 1:
            raise RequestError(f"dimensions must be at least 1, got {self.dimensions}.", "dimensions")
        if self.truncate_prompt_tokens is not None and (cut := self.truncate_prompt_tokens) < 1 and cut != -1:
            raise RequestError(
                f"truncate_prompt_tokens must be at least 1, or -1 for the model's length, got {cut}.",
                "truncate_prompt_tokens",
            )

    def clone(self, **changes: Any) -> "PoolingParams":
        """A copy with ``changes`` applied and validated."""
        return msgspec.structs.replace(self, **changes)
