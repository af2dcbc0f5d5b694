"""The option of profiling, and the keys of its JSON object, which are vLLM's. Records nothing itself."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from headrace.config.option import option, settings_in
from headrace.errors import ConfigError

DEFAULT_DIRECTORY = "headrace_profile"
VARIABLE = "HEADRACE_PROFILER_CONFIG"  # of the environment: --profiler-config for whatever command runs in it
Steps = Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True)
class ProfilingOptions:
    """Recording what the device and the engine do."""

    profiler_config: dict[str, Any] | None = option(
        None,
        'Record profiles between /start_profile and /stop_profile: {"profiler": "torch", "torch_profiler_dir": DIR} '
        'writes traces, {"profiler": "cuda"} tells nsys when to; docs/benchmarking.md has all keys.',
    )


class ProfilerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys of --profiler-config. Names and defaults are vLLM's, but for ``autostart``, which it lacks,
    ``torch_profiler_dir``, which it asks for, and two that are off here for what they cost.
    """

    profiler: Literal["torch", "cuda"] | None = None
    torch_profiler_dir: str = DEFAULT_DIRECTORY
    torch_profiler_with_stack: bool = False  # the Python of every step too: it slows the host down several times
    torch_profiler_with_flops: bool = False
    torch_profiler_with_memory: bool = False
    torch_profiler_record_shapes: bool = False
    torch_profiler_use_gzip: bool = True
    torch_profiler_dump_cuda_time_total: bool = False  # torch's own table, beside the trace
    ignore_frontend: bool = True
    delay_iterations: Steps = 0  # steps to let pass first
    wait_iterations: Steps = 0  # the same, of torch's schedule
    warmup_iterations: Steps = 0  # steps with the profiler on whose events are thrown away
    active_iterations: Steps = 5  # steps to record, where one of the two above is set
    max_iterations: Steps = 0  # steps to record; 0: until told to stop
    autostart: bool = False  # from the first step on, without /start_profile

    @property
    def num_skipped(self) -> int:
        return self.delay_iterations + self.wait_iterations

    @property
    def num_recorded(self) -> int:
        """Steps to record; 0 for all until told to stop."""
        scheduled = self.wait_iterations or self.warmup_iterations
        limits = (self.max_iterations, self.active_iterations if scheduled else 0)
        return min((limit for limit in limits if limit), default=0)


def profiler_settings(value: dict[str, Any] | None) -> ProfilerSettings | None:
    """What --profiler-config asks for; None if it names no profiler. Raises ConfigError for a key or value it can't."""
    settings = settings_in("--profiler-config", value, ProfilerSettings)
    if not settings.ignore_frontend:
        raise ConfigError(
            "--profiler-config records the engine alone, so ignore_frontend can't be false: "
            "`headrace profile --tool viztracer -- headrace serve …` records the API process too."
        )
    return settings if settings.profiler else None
