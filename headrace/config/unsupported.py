"""The options of vLLM that this version takes but does not need, or refuses until it has what they ask for.

``later`` ones are refused above their neutral value; ``moot`` ones are accepted, and a log line says why they change
nothing; the legacy ones are older spellings, turned into today's.
"""

from dataclasses import dataclass
from typing import Any

from headrace.config.option import option

ONE_DEVICE = "one device needs no coordination"
FIXED_KERNELS = "its kernels are not compiled by torch.compile"
NO_MEDIA = "no model takes media yet"
OWN_CLASSES = "workers or a scheduler of your own"
OWN_FORMATS = "formats of your own (vLLM's plugins are subclasses of its parsers)"


@dataclass(frozen=True)
class ParallelOptions:
    """Several devices and hosts, of which this version uses one: more are refused."""

    tensor_parallel_size: int = option(
        1, "Devices that share each layer.", aliases=("-tp", "--tp"), minimum=1, later="tensor parallelism"
    )
    pipeline_parallel_size: int = option(
        1, "Devices that share the stack of layers.", aliases=("-pp", "--pp"), minimum=1, later="pipeline parallelism"
    )
    data_parallel_size: int = option(
        1, "Copies of the engine.", aliases=("-dp", "--dp"), minimum=1, later="data parallelism"
    )
    decode_context_parallel_size: int = option(
        1, "Devices that share the KV cache in decode.", aliases=("-dcp",), minimum=1, later="context parallelism"
    )
    prefill_context_parallel_size: int = option(
        1, "Devices that share a prompt in prefill.", aliases=("-pcp",), minimum=1, later="context parallelism"
    )
    data_parallel_size_local: int | None = option(
        None, "Copies on this host.", aliases=("-dpl",), minimum=0, later="data parallelism", neutral=(1,)
    )
    data_parallel_start_rank: int | None = option(
        None, "First copy on this host.", aliases=("-dpr",), minimum=0, later="data parallelism", neutral=(0,)
    )
    data_parallel_rank: int | None = option(
        None, "Which copy this process is.", aliases=("-dpn",), minimum=0, later="data parallelism", neutral=(0,)
    )
    data_parallel_address: str | None = option(None, "Host of the first copy.", aliases=("-dpa",), moot=ONE_DEVICE)
    data_parallel_rpc_port: int | None = option(None, "Port of the first copy.", aliases=("-dpp",), moot=ONE_DEVICE)
    data_parallel_backend: str | None = option(
        None, "What starts the copies.", aliases=("-dpb",), choices=("mp", "ray"), moot=ONE_DEVICE
    )
    distributed_executor_backend: str | None = option(
        None,
        "What starts the workers of further devices; with one device there is none.",
        choices=("mp", "ray", "uni", "external_launcher"),
        moot=ONE_DEVICE,
    )
    nnodes: int = option(1, "Hosts.", aliases=("-n",), minimum=1, later="serving across hosts")
    node_rank: int = option(0, "Which host this is.", aliases=("-r",), minimum=0, later="serving across hosts")
    master_addr: str | None = option(None, "Address of the first host.", moot=ONE_DEVICE)
    master_port: int | None = option(None, "Port of the first host.", moot=ONE_DEVICE)
    headless: bool = option(False, "Run an engine without an API server.", later="serving across hosts")
    api_server_count: int | None = option(
        None, "API processes.", aliases=("-asc",), minimum=1, later="several API processes", neutral=(1,)
    )
    enable_expert_parallel: bool = option(
        False, "Spread the experts over the devices instead of slicing each.", aliases=("-ep",), moot=ONE_DEVICE
    )
    all2all_backend: str | None = option(None, "How experts exchange tokens.", moot=ONE_DEVICE)
    enable_eplb: bool = option(False, "Balance experts over the devices.", later="expert load balancing")
    eplb_config: dict[str, Any] | None = option(None, "How to balance them.", later="expert load balancing")
    data_parallel_hybrid_lb: bool = option(False, "Balance within hosts only.", later="data parallelism")
    data_parallel_external_lb: bool = option(False, "Leave balancing to others.", later="data parallelism")
    distributed_timeout_seconds: int | None = option(None, "Longest wait for other devices.", moot=ONE_DEVICE)
    enable_dbo: bool = option(False, "Overlap two half batches.", later="dual batch overlap")
    disable_custom_all_reduce: bool = option(False, "Reduce through the library only.", moot=ONE_DEVICE)


@dataclass(frozen=True)
class FeatureOptions:
    """Features still to come, refused until then."""

    quantization: str | None = option(
        None, "Compute with quantized weights.", aliases=("-q",), later="quantized compute", neutral=("gguf",)
    )
    quantization_config: dict[str, Any] | None = option(None, "How they are.", later="quantized compute")
    kv_cache_dtype: str = option("auto", "Type of cached keys and values.", later="a quantized KV cache")
    cpu_offload_gb: float = option(0.0, "GiB of weights kept in host memory.", minimum=0, later="weight offloading")
    kv_offloading_size: float | None = option(
        None, "GiB of host memory behind the KV cache.", minimum=0, later="KV cache offloading", neutral=(0,)
    )
    watermark: float = option(0.0, "Share of KV blocks kept free.", minimum=0, maximum=1, later="a free-block reserve")
    kv_transfer_config: dict[str, Any] | None = option(
        None, "Hand KV blocks to other servers.", later="KV cache transfer"
    )
    kv_events_config: dict[str, Any] | None = option(None, "Publish KV cache events.", later="KV cache events")
    enable_lora: bool = option(False, "Serve LoRA adapters.", later="LoRA")
    lora_modules: list[str] = option([], "Adapters, as name=path.", later="LoRA", metavar="NAME=PATH")
    max_loras: int = option(1, "Adapters in a batch.", minimum=1, later="LoRA")
    max_lora_rank: int = option(16, "Largest rank of an adapter.", minimum=1, later="LoRA")
    max_cpu_loras: int | None = option(None, "Adapters in host memory.", minimum=1, later="LoRA")
    fully_sharded_loras: bool = option(False, "Slice adapters over devices.", later="LoRA")
    lora_dtype: str = option("auto", "Type of adapters.", later="LoRA")
    default_mm_loras: dict[str, Any] | None = option(None, "Adapters by kind of media.", later="LoRA")
    speculative_config: dict[str, Any] | None = option(
        None, "Draft tokens ahead and verify them.", later="speculative decoding"
    )
    spec_method: str | None = option(None, "How to draft.", later="speculative decoding")
    spec_model: str | None = option(None, "What drafts.", later="speculative decoding")
    spec_tokens: int | None = option(None, "Tokens to draft.", minimum=0, later="speculative decoding", neutral=(0,))
    tool_parser_plugin: str | None = option(None, "Your own tool call format.", later=OWN_FORMATS, neutral=("",))
    reasoning_parser_plugin: str | None = option(None, "Your own reasoning format.", later=OWN_FORMATS, neutral=("",))
    allowed_local_media_path: str = option("", "Directory that requests may name files of.", later="media in prompts")
    allowed_media_domains: list[str] = option([], "Hosts that media may come from.", later="media in prompts")
    limit_mm_per_prompt: dict[str, Any] | None = option(
        None, "Most media items in a prompt, by kind.", later="media in prompts"
    )
    mm_processor_kwargs: dict[str, Any] | None = option(
        None, "Settings of the media processor.", later="media in prompts"
    )
    media_io_kwargs: dict[str, Any] = option({}, "Settings of media decoding.", later="media in prompts")
    enable_mm_embeds: bool = option(False, "Take media as embeddings.", later="media in prompts")
    mm_processor_cache_gb: float = option(4.0, "GiB of cached media.", minimum=0, moot=NO_MEDIA)
    mm_processor_cache_type: str = option("lru", "Where it is.", moot=NO_MEDIA)
    mm_encoder_tp_mode: str = option("weights", "What devices share of encoders.", moot=NO_MEDIA)
    language_model_only: bool = option(False, "Take no media.", moot=NO_MEDIA)
    interleave_mm_strings: bool = option(False, "Where media stand in texts.", moot=NO_MEDIA)
    skip_mm_profiling: bool = option(False, "Start without a trial of media.", moot=NO_MEDIA)
    model_impl: str = option(
        "auto",
        "Whose code computes the model.",
        choices=("auto", "vllm", "transformers", "terratorch"),
        later="other code of models than its own",
        neutral=("vllm",),
    )
    config_format: str = option("auto", "Whose format config.json has.", later="Mistral's own formats", neutral=("hf",))
    moe_backend: str = option("auto", "Kernels of experts.", later="a choice of kernels")
    linear_backend: str = option("auto", "Kernels of matrix products.", later="a choice of kernels")
    worker_cls: str = option("auto", "Your own worker.", later=OWN_CLASSES)
    worker_extension_cls: str = option("", "Methods added to it.", later=OWN_CLASSES)
    scheduler_cls: str | None = option(None, "Your own scheduler.", later=OWN_CLASSES)
    watermark_config: dict[str, Any] | None = option(None, "Mark outputs as generated.", later="watermarks")
    enable_sleep_mode: bool = option(False, "Let the server give its memory back.", later="sleep mode")
    otlp_traces_endpoint: str | None = option(None, "Send traces there.", later="OpenTelemetry traces")
    collect_detailed_traces: str | None = option(None, "What to trace.", later="OpenTelemetry traces")
    kv_cache_metrics: bool = option(False, "Report how long KV blocks live.", later="KV block life metrics")
    enable_mfu_metrics: bool = option(False, "Report FLOPs and bytes.", later="FLOP and byte metrics")
    enable_per_request_metrics: bool = option(False, "Times in every answer.", later="times in every answer")
    enable_log_outputs: bool = option(False, "Log generated text.", later="logging of generated text")
    middleware: list[str] = option([], "Your own ASGI middleware.", later="custom middleware")
    grpc: bool = option(False, "Serve gRPC.", later="gRPC")
    safetensors_load_strategy: str | None = option(
        None, "How files are read.", later="another way to read than memory mapping", neutral=("lazy",)
    )


@dataclass(frozen=True)
class LegacyOptions:
    """Older spellings, and settings of machinery that does not exist here."""

    disable_log_requests: bool = option(False, "Old opposite of --enable-log-requests.")
    profile: bool = option(False, 'Short for --profiler-config \'{"profiler": "torch"}\'.')
    rope_scaling: dict[str, Any] | None = option(None, "Old for --hf-overrides' rope_scaling.")
    rope_theta: float | None = option(None, "Old for --hf-overrides' rope_theta.", minimum=0)
    swap_space: float = option(4.0, "GiB to swap to.", minimum=0, moot="a preempted request is recomputed, not swapped")
    num_scheduler_steps: int = option(1, "Steps planned at once.", minimum=1, moot="steps overlap by themselves")
    multi_step_stream_outputs: bool = option(True, "Stream each of them.", moot="steps overlap by themselves")
    use_v2_block_manager: bool = option(True, "Old choice of block manager.", moot="there is one block manager")
    disable_async_output_proc: bool = option(
        False, "Old choice of output handling.", moot="outputs are always handled apart"
    )
    disable_frontend_multiprocessing: bool = option(
        False, "Engine in the API process.", moot="the engine always has its own process"
    )
    preemption_mode: str | None = option(None, "Swap or recompute.", moot="a preempted request is always recomputed")
    guided_decoding_backend: str | None = option(
        None, "Old for --structured-outputs-config.", moot="llguidance serves every grammar"
    )
    max_seq_len_to_capture: int = option(8192, "Longest request in a graph.", moot="no graph depends on a length")
    max_parallel_loading_workers: int | None = option(
        None, "Devices that load at once.", minimum=1, moot="one device loads on several threads"
    )
    optimization_level: str = option(
        "2", "How much to compile.", aliases=("-O",), choices=("0", "1", "2", "3"), moot=FIXED_KERNELS
    )
    compilation_config: dict[str, Any] | None = option(None, "What to compile.", aliases=("-cc",), moot=FIXED_KERNELS)
    performance_mode: str = option(
        "balanced",
        "What to tune for.",
        choices=("balanced", "interactivity", "throughput"),
        moot="there is one set of kernels",
    )
    code_revision: str | None = option(
        None, "Revision of the model's own code.", moot="the model's code comes at the model's --revision"
    )
    max_log_len: int | None = option(None, "Characters logged of a prompt.", moot="prompts are never logged")
    h11_max_header_count: int = option(256, "Most HTTP headers.", moot="it is their size that is limited")
    h11_max_incomplete_event_size: int | None = option(
        None, "Largest HTTP head.", moot="a request's head may have some 64 KiB, which no option changes"
    )
    show_hidden_metrics_for_version: str | None = option(
        None, "Bring renamed metrics back.", moot="old metric names are always served beside the new ones"
    )
    enable_trace_replay: bool = option(
        False, "Let requests name the tokens to generate.", moot="any may, with trace_decode_token_ids"
    )
    disable_cascade_attn: bool = option(True, "Attend to shared prefixes apart.", moot="there is no cascade attention")
    disable_hybrid_kv_cache_manager: bool | None = option(
        None, "Keep what no layer reads.", moot="each kind of layer keeps what it reads"
    )
    ignore_patterns: list[str] = option([], "Files not to download.", moot="only files that are read are downloaded")
    model_loader_extra_config: dict[str, Any] = option(
        {}, "Settings of the loader.", moot="files are mapped into memory and read on several threads as they are"
    )
    pt_load_map_location: str = option("cpu", "Where .bin files go.", moot="no .bin files are read")
    enable_scale_out: bool = option(False, "Open the token routes.", moot="the token routes are always open")
