"""The options on how answers are taken apart into reasoning, content and tool calls; names are vLLM's."""

from dataclasses import dataclass

from headrace.config.option import option

TOOL_PARSERS = (
    *("hermes", "qwen3_coder", "qwen3_xml", "llama3_json", "llama4_json", "pythonic", "llama3_pythonic"),
    *("llama4_pythonic", "mistral", "deepseek_v3", "deepseek_v31", "deepseek_v32", "glm45", "glm47", "granite"),
    *("granite4", "granite-20b-fc", "openai", "kimi_k2", "minimax", "minimax_m2", "seed_oss", "step3p5", "mimo"),
    *("lfm2", "olmo3", "internlm", "phi4_mini_json", "jamba", "hunyuan_a13b", "ernie45", "xlam", "longcat"),
)
REASONING_PARSERS = (
    *("qwen3", "deepseek_r1", "deepseek_v3", "glm45", "glm47", "granite", "holo2", "kimi_k2", "mimo", "minimax_m2"),
    *("mistral", "nemotron_v3", "olmo3", "openai_gptoss", "seed_oss", "step3", "step3p5"),
)


@dataclass(frozen=True)
class ParserOptions:
    """Tool calls and reasoning in answers."""

    tool_call_parser: str | None = option(
        None,
        "How the model writes tool calls; as its chat template shows unless set.",
        choices=(*TOOL_PARSERS, "none", ""),
    )
    enable_auto_tool_choice: bool = option(
        False, "Don't start unless the model's tool calls can be read; they are read without this too."
    )
    reasoning_parser: str | None = option(
        None,
        "How the model marks its reasoning; as its chat template shows unless set.",
        choices=(*REASONING_PARSERS, "none", ""),
    )
    exclude_tools_when_tool_choice_none: bool = option(
        False, 'Keep the tools of a request with tool_choice "none" from the chat template.'
    )
