"""Records steps: torch.profiler writes traces; the CUDA profiler's switch tells a tool outside, as nsys, when to look.

Owns when a recording begins and ends; knows neither models nor requests, and nobody calls it unless it is configured.
"""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from headrace.config import ProfilerSettings
from headrace.errors import ConfigError
from headrace.files import check_directory
from headrace.types import Plan

logger = logging.getLogger(__name__)


class Profiler:
    """Started and stopped on demand; while it records, each step is a range named after it in the trace."""

    def __init__(self, settings: ProfilerSettings, device: torch.device):
        self._settings, self._device = settings, device
        self._directory = Path(settings.torch_profiler_dir).absolute()
        if settings.profiler == "cuda" and device.type != "cuda":
            raise ConfigError(
                '--profiler-config {"profiler":"cuda"} needs a GPU; {"profiler":"torch"} records a CPU too.'
            )
        if settings.profiler == "torch":
            check_directory(self._directory, "--profiler-config's torch_profiler_dir")
        self._seen: int | None = None  # steps since the start; None if stopped
        self._trace: profile | None = None
        self._files: list[str] = []  # of the last recording
        atexit.register(self._end)  # a recording that nobody stopped ends with the process

    @property
    def active(self) -> bool:
        return self._seen is not None

    def start(self) -> None:
        """Begin, or begin to count the steps to skip first."""
        self._seen, self._files = 0, []
        self._advance()

    def stop(self) -> list[str]:
        """End the recording, if one is under way; the files it made. Raises OSError if they can't be written."""
        if self._seen is None:
            return self._files
        recorded = self._seen >= self._first
        self._seen = None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # what was launched belongs to the recording
        if self._settings.profiler == "cuda":
            if recorded:
                torch.cuda.cudart().cudaProfilerStop()
        elif self._trace is not None:
            trace, self._trace = self._trace, None
            if not recorded:
                trace.start_trace()  # torch stops only what has started
            trace.stop_trace()
            if recorded:
                self._write(trace)
        return self._files

    @contextmanager
    def step(self, plan: Plan) -> Iterator[None]:
        """Around the launch of a step."""
        if self._seen is None:
            yield
            return
        name = f"headrace: step {plan.step} ({len(plan.rows)} rows, {sum(plan.counts)} tokens)"
        if self._settings.profiler == "cuda":
            with torch.cuda.nvtx.range(name):
                yield
        else:
            with record_function(name):
                yield
        self._seen += 1
        self._advance()

    @property
    def _first(self) -> int:
        """Steps that pass before the first that is recorded."""
        return self._settings.num_skipped + self._settings.warmup_iterations

    def _advance(self) -> None:
        """Do what the steps seen so far make due."""
        seen, settings = self._seen, self._settings
        if settings.profiler == "torch" and seen == settings.num_skipped:
            self._trace = self._new_trace()
            self._trace.prepare_trace()
        if seen == self._first:
            logger.info("Recording a profile")
            if self._trace is not None:
                self._trace.start_trace()
            else:
                torch.cuda.cudart().cudaProfilerStart()
        if settings.num_recorded and seen == self._first + settings.num_recorded:
            self._end()

    def _end(self) -> None:
        """Stop where nobody waits for the answer."""
        try:
            self.stop()
        except (OSError, RuntimeError) as error:  # a full disk is no reason to stop serving
            logger.error("The profile could not be written: %s", error)

    def _new_trace(self) -> profile:
        settings = self._settings
        on_gpu = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        return profile(
            activities=[ProfilerActivity.CPU, *on_gpu],
            record_shapes=settings.torch_profiler_record_shapes,
            profile_memory=settings.torch_profiler_with_memory,
            with_stack=settings.torch_profiler_with_stack,
            with_flops=settings.torch_profiler_with_flops,
        )

    def _write(self, trace: profile) -> None:
        """The trace under the name that vLLM's would have, for tools that look for it."""
        stem = f"rank0.{time.time_ns()}"
        path = self._directory / f"{stem}.pt.trace.json{'.gz' if self._settings.torch_profiler_use_gzip else ''}"
        trace.export_chrome_trace(str(path))
        if not path.exists():
            raise OSError(f"nothing can be written at {path}")  # torch merely logs it
        self._files = [str(path)]
        if self._settings.torch_profiler_dump_cuda_time_total:
            table = path.with_name(f"profiler_out_{stem}.txt")
            sort_by = "self_cuda_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
            table.write_text(trace.key_averages().table(sort_by=sort_by))
            self._files.append(str(table))
        logger.info("Wrote the profile to %s", path)
