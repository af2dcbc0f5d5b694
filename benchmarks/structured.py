"""What structured output costs: ``python benchmarks/structured.py [MODEL]``.

Prints the time for one token's mask of one row (accepting the last token, computing the mask, changing the logits), and
how much slower unconstrained requests get when half of their batch is constrained instead of free.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from headrace import LLM, SamplingParams, StructuredOutputsParams
from headrace.ops.mask import mask_tokens

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "email": {"type": "string", "pattern": "^[a-z]{2,12}@[a-z]{2,12}\\.(com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
    },
    "required": ["name", "age", "email", "tags"],
    "additionalProperties": False,
}
FORMS = {
    "schema": StructuredOutputsParams(json=PERSON),
    "any object": StructuredOutputsParams(json_object=True),
    "regex": StructuredOutputsParams(regex="[a-z]{3,9}(, [a-z]{3,9}){20}"),
    "long text": StructuredOutputsParams(regex="(.|\\n){1000,2000}"),
}
PROMPT = "Describe a person: "
NUM_ROWS, NUM_TOKENS = 4, 64


def mask_costs(llm: LLM, form: StructuredOutputsParams) -> list[tuple[float, float, float]]:
    """Seconds to accept a token, to compute the next mask and to change the logits, of tokens the model chose."""
    params = [SamplingParams(max_tokens=100, seed=seed, structured_outputs=form) for seed in range(4)]
    engine = llm._alive
    grammars = engine.scheduler.grammars
    text = llm.door.admit(PROMPT, params[0]).grammar
    assert text is not None
    logits, costs = torch.zeros(1, engine.info.vocab_size), []
    for output in llm.generate([PROMPT] * len(params), params, use_tqdm=False):
        grammar = grammars.start(text, False)
        while not grammar.settle():
            time.sleep(0.01)
        for token_id in output.outputs[0].token_ids:
            began = time.perf_counter()
            if grammar.accept(token_id):
                break
            accepted = time.perf_counter()
            grammars._fill([grammar])
            masked = time.perf_counter()
            mask_tokens(logits, torch.tensor([0]), torch.from_numpy(grammar.take().view(np.int32))[None])
            costs.append((accepted - began, masked - accepted, time.perf_counter() - masked))
    return costs


def seconds(llm: LLM, others: SamplingParams) -> float:
    """That ``NUM_ROWS`` free requests take beside as many ``others``."""
    free = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    outputs = llm.generate([PROMPT] * 2 * NUM_ROWS, [free] * NUM_ROWS + [others] * NUM_ROWS, use_tqdm=False)
    times = [output.metrics for output in outputs[:NUM_ROWS] if output.metrics is not None]
    return max(one.last_token_ts for one in times) - min(one.queued_ts for one in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    llm = LLM(**({"model": arguments.model} if arguments.model else {}), max_model_len=2048)
    print("microseconds a token and row, median (99th percentile): accept, mask, logits, together")
    for name, form in FORMS.items():
        costs = np.array(mask_costs(llm, form)) * 1e6
        columns = [*costs.T, costs.sum(axis=1)]
        print(f"{name:12}", *(f"{np.median(column):7.1f} ({np.percentile(column, 99):.0f})" for column in columns))
    free = SamplingParams(max_tokens=NUM_TOKENS, ignore_eos=True)
    bound = free.clone(structured_outputs=FORMS["long text"])
    seconds(llm, bound)  # compiles the grammar
    pairs = [(seconds(llm, free), seconds(llm, bound)) for _ in range(arguments.rounds)]
    alone, beside = (statistics.median(column) for column in zip(*pairs, strict=True))
    lost = statistics.median(constrained / plain - 1 for plain, constrained in pairs)
    print(f"{NUM_ROWS} free requests: {NUM_ROWS * NUM_TOKENS / alone:.1f} tok/s beside {NUM_ROWS} free ones,")
    print(f"{NUM_ROWS * NUM_TOKENS / beside:.1f} beside {NUM_ROWS} constrained: {lost:+.1%} time, median of the rounds")


if __name__ == "__main__":
    main()
