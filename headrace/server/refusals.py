"""Request fields that mean something elsewhere and are not served here: each is refused, never ignored.

A field passes if it is absent, null, false, empty or has the value that asks for nothing. Owns the table; knows
nothing about routes.
"""

import logging
from typing import Any

from headrace.errors import RequestError
from headrace.server.schema import ModelField

logger = logging.getLogger(__name__)

LATER = "`{name}` is not supported by this server yet; leave it out."
TEXT_ONLY = "This server takes and gives text only; leave `{name}` out."
NOTHING_RUN = "This server runs no tools itself; leave `{name}` out."

# field -> (a value that asks for nothing, the sentence of refusal)
REFUSED: dict[str, tuple[Any, str]] = {
    "suffix": (None, "`suffix` is refused: the models served here write on, they do not fill in a middle."),
    "functions": (None, "`functions` was replaced by `tools` in the API."),
    "function_call": ("none", "`function_call` was replaced by `tool_choice` in the API."),
    "modalities": (["text"], TEXT_ONLY),
    **dict.fromkeys(("audio", "images", "mm_processor_kwargs", "media_io_kwargs", "features"), (None, TEXT_ONLY)),
    "prompt_embeds": (None, "Prompts as embeddings go to /v1/completions only; leave `prompt_embeds` out."),
    "truncation_side": ("left", "Prompts are truncated on the left only; leave `truncation_side` out."),
    "max_tokens_per_query": (None, "`truncate_prompt_tokens` cuts a query and its document together, not each alone."),
    "max_tokens_per_doc": (None, "`truncate_prompt_tokens` cuts a query and its document together, not each alone."),
    "tokenization_kwargs": (None, "Send add_special_tokens and truncate_prompt_tokens by themselves."),
    **dict.fromkeys(("container", "mcp_servers"), (None, NOTHING_RUN)),
    "output_format": (None, "`output_format` is called `output_config.format` now."),
    "moderation": (None, "This server does not moderate; leave `moderation` out."),
    "padding": ("do_not_pad", "Prompts are never padded; leave `padding` out."),
    "speed": ("standard", LATER),
    **dict.fromkeys(
        (
            *("web_search_options", "repetition_detection", "return_token_offsets"),
            *("kv_transfer_params", "ec_transfer_params", "inference_geo", "fallbacks", "compaction", "thread"),
            *("watermarking", "late_chunking_params", "step_tag_id", "returned_token_ids"),
        ),
        (None, LATER),
    ),
}


def refuse_unsupported(body: ModelField) -> None:
    """Raise RequestError for the first field of ``body`` that asks for what is not served; unknown ones pass."""
    for name, value in (body.model_extra or {}).items():
        if name not in REFUSED:
            logger.debug("The request field %r is unknown and has no effect.", name)
        elif value and value != REFUSED[name][0]:
            raise RequestError(REFUSED[name][1].format(name=name), name)
