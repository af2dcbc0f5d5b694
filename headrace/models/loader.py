"""Fills a decoder with a checkpoint's weights: several threads, little memory. Knows no model and no file format.

Tensors are copied from mapped files straight to where they belong. The largest go first, while most of the model is
still untouched memory, and few bytes are under way at a time; so the host holds no more than the weights and
``IN_FLIGHT_BYTES`` at any moment.
"""

import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

import torch

from headrace.errors import ConfigError
from headrace.models.source import ModelFiles
from headrace.models.stored import Chunk, safetensors_chunks, weight_files

IN_FLIGHT_BYTES = 512 * 2**20
MAX_THREADS = 8


class Loadable(Protocol):
    """A model as the loader sees it."""

    def accepts(self, checkpoint_name: str) -> bool:
        """Whether it has a place for a tensor of that name, maybe one in another form than its plain values."""
        ...

    def load_weight(self, checkpoint_name: str, tensor: torch.Tensor) -> None: ...

    def finish_loading(self) -> None: ...

    def init_dummy(self, seed: int) -> None: ...


def load(
    decoder: Loadable,
    files: ModelFiles,
    load_format: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> None:
    """Load all weights in ``files`` into ``decoder``, or random ones made from ``seed`` if ``load_format`` is dummy.

    ``progress`` is called with the bytes read and the bytes in all, from this thread. Raises ``ConfigError``, in one
    sentence that names the file or the tensor, if something is missing, damaged, or doesn't fit.
    """
    if load_format == "dummy":
        decoder.init_dummy(seed)
    else:
        _load(decoder, _chunks(files, decoder), progress or (lambda done, total: None))
    decoder.finish_loading()


def _chunks(files: ModelFiles, decoder: Loadable) -> list[Chunk]:
    if files.kind == "gguf":
        from headrace.models.gguf.weights import gguf_chunks

        return gguf_chunks(Path(files.path), decoder.accepts)
    return [chunk for path in weight_files(Path(files.path)) for chunk in safetensors_chunks(path)]


def _load(decoder: Loadable, chunks: list[Chunk], progress: Callable[[int, int], None]) -> None:
    total, done = sum(chunk.num_bytes for chunk in chunks), 0
    progress(0, total)
    running: dict[Future[None], Chunk] = {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "load") as pool:

        def finish_some() -> None:
            nonlocal done
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                future.result()
                done += chunk.num_bytes
                progress(done, total)

        try:
            for chunk in sorted(chunks, key=lambda chunk: chunk.host_bytes, reverse=True):
                while running and sum(one.host_bytes for one in running.values()) + chunk.host_bytes > IN_FLIGHT_BYTES:
                    finish_some()
                running[pool.submit(_fill, decoder, chunk)] = chunk
            while running:
                finish_some()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _fill(decoder: Loadable, chunk: Chunk) -> None:
    try:
        for name, tensor in chunk.read():
            decoder.load_weight(name, tensor)
    except ConfigError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"{chunk.path} can't be read: {error}.") from error
