"""The formats of the families, by the names of vLLM's --tool-call-parser and --reasoning-parser.

They are those of the families' own chat templates and, for gpt-oss, of OpenAI's harmony specification. The more
telling signs come first, as the first format whose sign is in a chat template is taken for it.
"""

import regex

from headrace.frontend.parsers.formats import Calls, Pairs, ReasoningFormat, Span, ToolFormat

NAME = r"(?P<name>[\w.:-]{1,256})"
NAME_BEFORE_NUMBER = r"(?P<name>[\w.-]{1,256}):\d{1,9}"
PYTHON_HEAD = r"(?P<name>[A-Za-z_][\w.]{0,255})(?=\()"
COMMA = r"\s*,\s*(?=\{)"

# -- tool calls -----------------------------------------------------------------------------------------------------


def calls_in(
    *sections: Calls, signs: tuple[str, ...] | None = None, special: bool = False, short_ids: bool = False
) -> ToolFormat:
    """The format of calls in ``sections``; the marker of the first is its sign unless others are given."""
    return ToolFormat(sections, (sections[0].marker,) if signs is None else signs, special, short_ids)


def harmony_calls(marker: str, begin: str) -> Calls:
    """A message to a function; its recipient stands before or after the channel."""
    function = r"to=functions\.(?P<name>[\w.-]{1,256})"
    channel = r"<\|channel\|>\w{1,64}"
    head = rf"\s*(?:{channel}\s*{function}|{function}\s*{channel})\s*(?:<\|constrain\|>)?\w{{0,64}}\s*<\|message\|>\s*"
    return Calls(marker=marker, style="json", begin=begin, head=head + r"(?=\{)", end=r"\s*<\|call\|>")


def deepseek_calls(head: str, end: str) -> Calls:
    return Calls(
        marker="<｜tool▁calls▁begin｜>",
        style="json",
        begin="<｜tool▁calls▁begin｜>",
        head=r"\s*<｜tool▁call▁begin｜>" + head + r"\s*(?=\{)",
        end=end + r"\s*<｜tool▁call▁end｜>",
        again=r"\s*(?=<｜tool▁call▁begin｜>)",
        close=r"\s*<｜tool▁calls▁end｜>",
    )


def listed_calls(marker: str, close: str = "", begin: str | None = None) -> Calls:
    """A JSON list of calls; ``begin``: what leads to it, if that is more than the marker."""
    begin = regex.escape(marker) if begin is None else begin
    return Calls(marker=marker, begin=begin + r"\s*\[\s*(?=\{)", again=COMMA, close=r"\s*\]" + close)


def object_calls(marker: str, end: str = "", begin: str | None = None) -> Calls:
    """Calls of which each is an object with a marker of its own; ``begin``: what leads to it, if that is more."""
    begin = regex.escape(marker) if begin is None else begin
    return Calls(marker=marker, begin=begin + r"\s*(?=\{)", end=end)


def invoked_calls(section: str, prefix: str) -> Calls:
    """A section of calls as Anthropic's models write them, in XML whose tags may have a prefix."""
    pairs = Pairs(
        key=rf'\s*<{prefix}parameter name="(?P<key>[^"<>\n]{{1,256}})"(?: string="\w{{4,5}}")?>',
        ends=(f"</{prefix}parameter>",),
        close=f"</{prefix}parameter>",
    )
    return Calls(
        marker=f"<{section}>",
        style="pairs",
        begin=f"<{section}>",
        head=rf'\s*<{prefix}invoke name="(?P<name>[^"<>\n]{{1,256}})">',
        pairs=pairs,
        end=rf"\s*</{prefix}invoke>",
        again=rf"\s*(?=<{prefix}invoke name)",
        close=rf"\s*</{section}>",
    )


def llama_calls(marker: str) -> Calls:
    again = r"\s*;\s*(?:<\|python_tag\|>\s*)?(?=\{)"
    return Calls(marker=marker, begin=regex.escape(marker) + r"\s*(?=\{)", again=again)


def python_calls(marker: str, close: str) -> Calls:
    return Calls(
        marker=marker,
        style="python",
        begin=regex.escape(marker) + r"\s*\[\s*(?=[A-Za-z_])",
        head=PYTHON_HEAD,
        again=r"\s*,\s*(?=[A-Za-z_])",
        close=r"\s*\]" + close,
    )


def qwen_calls(marker: str, end: str = "", begin: str | None = None) -> Calls:
    pairs = Pairs(
        key=r"\s*<parameter=(?P<key>[^<>\n]{1,256})>(?:\n|(?=[^\n]))",
        ends=("\n</parameter>", "</parameter>"),
        close=r"\n?</parameter>",
    )
    head = r"\s*<function=(?P<name>[^<>\n]{1,256})>"
    begin = regex.escape(marker) if begin is None else begin
    return Calls(marker=marker, style="pairs", begin=begin, head=head, pairs=pairs, end=r"\s*</function>" + end)


GLM_PAIRS = Pairs(
    key=r"\s*<arg_key>(?P<key>[^<>\n]{1,256})</arg_key>\s*<arg_value>", ends=("</arg_value>",), close="</arg_value>"
)
GLM_HEAD = rf"\s*{NAME}\s*(?=<arg_key>|</tool_call>)"
MISTRAL_HEAD = rf"\s*{NAME}(?:\[CALL_ID\]\w{{1,64}})?(?:\[ARGS\])?\s*(?=\{{)"


def forced_calls(name: str | None, reasoning: ReasoningFormat | None) -> tuple[Calls, ...]:
    """An answer that a grammar makes the arguments of the function ``name``, or else a list of calls.

    It stands at the text's beginning, or where a span of content would.
    """
    spans = [span for span in reasoning.spans if span.kind == "content"] if reasoning else []
    places = [(span.marker, span.begin) for span in spans] or [("", "")]
    if name is None:
        return tuple(listed_calls(marker, begin=begin) for marker, begin in places)
    return tuple(Calls(marker=marker, style="json", begin=begin + r"\s*(?=\{)", name=name) for marker, begin in places)


TOOL_FORMATS = {
    "openai": calls_in(
        harmony_calls("<|channel|>", r"(?=<)"),
        harmony_calls("<|start|>", r"<\|start\|>assistant"),
        harmony_calls("", r"(?=\s*to=)"),
        special=True,
    ),
    "seed_oss": calls_in(qwen_calls("<seed:tool_call>", r"\s*</seed:tool_call>")),
    "qwen3_coder": calls_in(
        qwen_calls("<tool_call>", r"\s*</tool_call>"), qwen_calls("<function=", begin=r"(?=<)"), signs=("<function=",)
    ),
    "glm45": calls_in(
        Calls(
            marker="<tool_call>",
            style="pairs",
            begin="<tool_call>",
            head=GLM_HEAD,
            pairs=GLM_PAIRS,
            end=r"\s*</tool_call>",
        ),
        signs=("<arg_key>",),
    ),
    "deepseek_v3": calls_in(
        deepseek_calls(r"function<｜tool▁sep｜>(?P<name>[^<\n]{1,256})\n```json", r"\s*```"),
        deepseek_calls(r"(?P<name>[^<\n]{1,256})<｜tool▁sep｜>", ""),
        special=True,
    ),
    "mistral": calls_in(
        listed_calls("[TOOL_CALLS]"),
        Calls(marker="[TOOL_CALLS]", style="json", begin=r"\[TOOL_CALLS\]", head=MISTRAL_HEAD),
        special=True,
        short_ids=True,
    ),
    "granite": calls_in(listed_calls("<|tool_call|>"), listed_calls("<tool_call>"), listed_calls(""), special=True),
    "pythonic": calls_in(python_calls("<|python_start|>", r"\s*<\|python_end\|>"), python_calls("", ""), special=True),
    "llama3_json": calls_in(
        llama_calls("<|python_tag|>"),
        llama_calls(""),
        signs=("<|python_tag|>", "dictionary of argument name and its value"),
        special=True,
    ),
    "kimi_k2": calls_in(
        Calls(
            marker="<|tool_calls_section_begin|>",
            style="json",
            begin=r"<\|tool_calls_section_begin\|>",
            head=rf"\s*<\|tool_call_begin\|>\s*(?:functions\.)?{NAME_BEFORE_NUMBER}\s*<\|tool_call_argument_begin\|>"
            r"\s*(?=\{)",
            end=r"\s*<\|tool_call_end\|>",
            again=r"\s*(?=<\|tool_call_begin\|>)",
            close=r"\s*<\|tool_calls_section_end\|>",
        ),
        special=True,
    ),
    "minimax_m2": calls_in(invoked_calls("minimax:tool_call", "")),
    "deepseek_v32": calls_in(invoked_calls("｜DSML｜function_calls", "｜DSML｜")),
    "lfm2": calls_in(python_calls("<|tool_call_start|>", r"\s*<\|tool_call_end\|>"), special=True),
    "olmo3": calls_in(
        Calls(
            marker="<function_calls>",
            style="python",
            begin=r"<function_calls>\s*(?=[A-Za-z_])",
            head=PYTHON_HEAD,
            again=r"\s*\n\s*(?=[A-Za-z_])",
            close=r"\s*</function_calls>",
        )
    ),
    "internlm": calls_in(
        object_calls("<|action_start|>", r"\s*<\|action_end\|>", begin=r"<\|action_start\|>\s*<\|plugin\|>"),
        special=True,
    ),
    "phi4_mini_json": calls_in(listed_calls("functools"), signs=("functools[",)),
    "minimax": calls_in(
        Calls(marker="<tool_calls>", begin=r"<tool_calls>\s*(?=\{)", again=r"\s*(?=\{)", close=r"\s*</tool_calls>"),
        signs=(),
    ),
    "jamba": calls_in(listed_calls("<tool_calls>", r"\s*</tool_calls>")),
    "granite-20b-fc": calls_in(object_calls("<function_call>")),
    "xlam": calls_in(
        listed_calls("[TOOL_CALLS]"),
        listed_calls("<tool_call>", r"\s*</tool_call>"),
        listed_calls("```json", r"\s*```"),
        listed_calls(""),
        signs=(),
    ),
    "longcat": calls_in(object_calls("<longcat_tool_call>", r"\s*</longcat_tool_call>")),
    "hermes": calls_in(object_calls("<tool_call>", r"\s*</tool_call>")),
}
TOOL_ALIASES = {
    "qwen3_xml": "qwen3_coder",
    "glm47": "glm45",
    "deepseek_v31": "deepseek_v3",
    "llama3_pythonic": "pythonic",
    "llama4_pythonic": "pythonic",
    "llama4_json": "llama3_json",
    **dict.fromkeys(("granite4", "ernie45"), "hermes"),
    **dict.fromkeys(("mimo", "step3p5"), "qwen3_coder"),
    "hunyuan_a13b": "jamba",
}

# -- reasoning ------------------------------------------------------------------------------------------------------


def harmony_span(opening: str, channel: str, kind: str) -> Span:
    pattern = {"<|start|>": r"<\|start\|>assistant\s*", "<|channel|>": ""}[opening]
    return Span(
        marker=opening,
        begin=rf"{pattern}<\|channel\|>{channel}\s*(?:<\|constrain\|>)?\w{{0,64}}\s*<\|message\|>",
        ends=("<|end|>", "<|return|>", "<|call|>", "<|start|>", "<|channel|>"),
        kind="reasoning" if kind == "reasoning" else "content",
    )


HARMONY = tuple(
    harmony_span(opening, channel, kind)
    for opening in ("<|start|>", "<|channel|>")
    for channel, kind in (("analysis", "reasoning"), ("(?:commentary|final)", "content"))
)
REASONING_FORMATS = {
    "openai_gptoss": ReasoningFormat(
        starts=("<|channel|>analysis<|message|>",),
        ends=("<|end|>",),
        spans=HARMONY,
        gates=("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
        closing="<|end|><|start|>assistant<|channel|>final<|message|>",
        signs=("<|channel|>",),
        special=True,
    ),
    "mistral": ReasoningFormat(starts=("[THINK]",), ends=("[/THINK]",), signs=("[THINK]",), special=True),
    "granite": ReasoningFormat(
        starts=("Here is my thought process:", "Here's my thought process:"),
        ends=("Here is my response:", "Here's my response:"),
        signs=("Here is my thought process:",),
    ),
    "seed_oss": ReasoningFormat(starts=("<seed:think>",), ends=("</seed:think>",), signs=("<seed:think>",)),
    "qwen3": ReasoningFormat(starts=("<think>",), ends=("</think>",), signs=("<think>", "</think>")),
    "deepseek_r1": ReasoningFormat(starts=("<think>",), ends=("</think>",), inside=True),
}
REASONING_ALIASES = {
    **dict.fromkeys(("deepseek_v3", "glm45", "glm47", "holo2", "kimi_k2", "mimo", "nemotron_v3", "olmo3"), "qwen3"),
    **dict.fromkeys(("minimax_m2", "step3", "step3p5"), "deepseek_r1"),
}
