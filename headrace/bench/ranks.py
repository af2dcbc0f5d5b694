"""Measuring with several processes, one for each GPU or node: what torchrun says of them, and how they meet."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from headrace.bench.datasets import Sample
from headrace.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that measure together; alone it is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    def meet(self) -> None:
        """Wait for the others."""
        self.gather(None)

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank."""
        if self.size == 1:
            return [value]
        import torch.distributed

        values: list[T] = [value] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def share(self, samples: Sequence[Sample]) -> list[Sample]:
        """This rank's samples; a conversation stays with one."""
        return [
            sample
            for index, sample in enumerate(samples)
            if (index if sample.conversation is None else sample.conversation) % self.size == self.rank
        ]


@contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun started, over gloo; this process sees its own GPU only. Without torchrun, one rank.

    Must come before anything uses a GPU. Variables: docs.pytorch.org/docs/stable/elastic/run.html.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Ranks()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[local % len(visible)] or str(local)
    import torch.distributed

    try:
        torch.distributed.init_process_group("gloo")
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, but the processes can't meet ({reason}): use torchrun."
        ) from None
    try:
        yield Ranks(torch.distributed.get_rank(), size)
    finally:
        torch.distributed.destroy_process_group()
