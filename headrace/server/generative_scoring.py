"""POST /generative_scoring: how likely a generating model finds certain next tokens, as vLLM has it.

One token is generated after each prompt, for the logprobs of the labels that come with it.
"""

from typing import Annotated

import numpy as np
from fastapi import Request
from pydantic import Field
from starlette.responses import Response

from headrace.errors import RequestError
from headrace.frontend.tokenizer import Tokenizer
from headrace.frontend.validation import MAX_ENTRIES, check_text
from headrace.server.bodies import Usage, json_response
from headrace.server.context import context_of
from headrace.server.errors import GenerationError
from headrace.server.generation import admit, check_generating, final_outputs
from headrace.server.routing import new_router
from headrace.server.sampling import output_kind_of
from headrace.server.schema import MAX_PROMPTS, StreamFields, TokenId
from headrace.types import RequestOutput, SamplingParams

router = new_router()

PREFIX = "generative-scoring"
TokenIds = list[TokenId]


class GenerativeScoringRequest(StreamFields):
    """POST /generative_scoring"""

    query: str | TokenIds
    items: Annotated[list[str] | list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    label_token_ids: Annotated[TokenIds, Field(min_length=1, max_length=MAX_ENTRIES["logprob_token_ids"])]
    apply_softmax: bool = True
    item_first: bool = False
    add_special_tokens: bool = True


@router.post("/generative_scoring", tags=["generate"])
async def generative_scoring(body: GenerativeScoringRequest, request: Request) -> Response:
    """The probability of the first label after query and item: among the labels, or in the whole vocabulary."""
    context = context_of(request)
    check_generating(context, body)
    if body.stream:
        raise RequestError("Scores are not streamed; leave stream out.", "stream")
    if context.config.model.logprobs_mode != "raw_logprobs":
        raise RequestError("Scores need a server with --logprobs-mode raw_logprobs.", "label_token_ids")
    labels = list(dict.fromkeys(body.label_token_ids))
    if max(labels) >= (size := context.engine.info.vocab_size):
        raise RequestError(f"label_token_ids has {max(labels)}; the vocabulary has 0 to {size - 1}.", "label_token_ids")
    params = SamplingParams(max_tokens=1, logprob_token_ids=labels, detokenize=False, output_kind=output_kind_of(body))
    for text in (body.query, *body.items):
        if isinstance(text, str):
            check_text(text, context.engine.tokenizer.longest_token, context.engine.info, "items")
    prompts = await context.in_thread("Tokenizing", prompts_of, context.engine.tokenizer, body)
    job = await admit(request, body, PREFIX, prompts, params)
    logprobs = np.array([logprobs_of(output, labels) for output in await final_outputs(request, job)])
    scores = np.exp(logprobs[:, 0] - (np.logaddexp.reduce(logprobs, axis=1) if body.apply_softmax else 0)).tolist()
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    num_prompt_tokens = sum(map(len, prompts))
    usage = Usage(num_prompt_tokens, num_prompt_tokens + len(prompts), len(prompts))
    head = {"id": job.id, "object": "list", "created": job.created, "model": job.model}
    return json_response(head | {"data": data, "usage": usage})


def prompts_of(tokenizer: Tokenizer, body: GenerativeScoringRequest) -> list[str | list[int]]:
    """The tokens of the query with each item after it, or before it."""
    query = body.query if isinstance(body.query, list) else tokenizer.encode(body.query, body.add_special_tokens)
    items = [item if isinstance(item, list) else tokenizer.encode(item, False) for item in body.items]
    return [item + query if body.item_first else query + item for item in items]


def logprobs_of(output: RequestOutput, labels: list[int]) -> list[float]:
    (sequence,) = output.outputs
    if not sequence.logprobs:
        raise GenerationError("The engine gave up on this request; the server's log says why.")
    return [sequence.logprobs[0][label].logprob for label in labels]
