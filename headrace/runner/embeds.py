"""Embeddings that prompts bring along: those a step needs, gathered from the rows. Knows no model and no schedule."""

import numpy as np
import torch

from headrace.device import to_device
from headrace.runner.rows import Rows
from headrace.types import Plan


def embeds_of(plan: Plan, rows: Rows) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which of a step's tokens, int64 [E], and their embeddings, float32 [E, dim]; None if no prompt brings any.

    They stay on the host until their step, so that a waiting prompt takes no device memory.
    """
    places, values = [], []
    for i in rows.wishing("embeds", plan.rows):
        fact, start, first = rows.fact(plan.rows[i]), plan.starts[i], sum(plan.counts[:i])
        count = min(plan.counts[i], fact.num_prompt_tokens - start)
        if fact.embeds is not None and count > 0:  # not so once it generates
            prompt = np.frombuffer(fact.embeds, np.float32).reshape(fact.num_prompt_tokens, -1)
            places.append(np.arange(first, first + count))
            values.append(prompt[start : start + count])
    if not places:
        return None
    arrays = np.concatenate(places), np.concatenate(values)
    where, what = (to_device(torch.from_numpy(array), rows.device) for array in arrays)
    return where, what
