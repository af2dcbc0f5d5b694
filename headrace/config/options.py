"""The options that this version obeys, group by group. Defaults and names are vLLM's wherever it has the option."""

from dataclasses import dataclass
from typing import Any

from headrace.config.option import option

MODEL_LEN_THAT_FITS = -1  # max_model_len: the largest that the KV cache holds
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
GENERATION_KEYS = (*SAMPLING_KEYS, "max_new_tokens", "do_sample")  # what is made of a generation_config.json


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it computes."""

    model: str = option(
        "",
        "Hugging Face directory or hub id, GGUF file, or repository:file.gguf; without one the packaged "
        "SmolLM2-135M-Instruct is served.",
        metavar="MODEL",
        aliases=("--model-tag",),
    )
    tokenizer: str | None = option(None, "Directory or hub id of another tokenizer than the model's own.")
    tokenizer_mode: str = option("auto", "Which tokenizer class to load.", choices=("auto", "hf", "slow"))
    skip_tokenizer_init: bool = option(False, "Load no tokenizer: prompts and outputs are token ids only.")
    trust_remote_code: bool = option(False, "Allow Python code out of the model's repository to run.")
    dtype: str = option(
        "auto",
        "Weights and activations; auto takes the checkpoint's on a GPU; on a CPU float32, or bfloat16 where quantized "
        "weights can be multiplied as they are.",
        choices=("auto", "half", "float16", "bfloat16", "float", "float32"),
    )
    seed: int = option(0, "Seed of requests that bring none.")
    max_model_len: int | None = option(
        None,
        "Most tokens of prompt and answer together; the model's own limit unless set; auto (or -1) takes what fits.",
        auto=MODEL_LEN_THAT_FITS,
        size=True,
        minimum=1,
    )
    allow_long_max_model_len: bool = option(False, "Allow a --max-model-len beyond the model's own limit.")
    served_model_name: list[str] = option(
        [], "Names under which the API serves the model, the first in answers.", metavar="NAME"
    )
    revision: str | None = option(None, "Branch, tag or commit of the model on the hub.")
    tokenizer_revision: str | None = option(None, "Branch, tag or commit of the tokenizer on the hub.")
    hf_token: str | None = option(None, "Hugging Face access token; HF_TOKEN in the environment does too.", secret=True)
    hf_overrides: dict[str, Any] = option({}, "Values that replace those of the model's config.json.")
    disable_sliding_window: bool = option(False, "Serve no more than the sliding window and attend to all of it.")
    max_logprobs: int = option(20, "Most logprobs a request may ask for at each position; -1 for any.", minimum=-1)
    logprobs_mode: str = option(
        "raw_logprobs",
        "What logprobs report: before or after penalties and temperature, normalized or not.",
        choices=("raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"),
    )
    logits_processors: list[str] = option([], "Your own logits processors, each as module:Class.", metavar="PATH")
    generation_config: str = option(
        "auto", "Where sampling defaults come from: auto (the model), vllm (none) or a directory."
    )
    override_generation_config: dict[str, Any] = option({}, "Values that replace those of generation_config.json.")
    enforce_eager: bool = option(False, "Never capture GPU graphs.")
    cudagraph_capture_sizes: list[int] = option([], "Numbers of tokens to capture steps for.")
    max_cudagraph_capture_size: int | None = option(None, "The largest of them; 512 if not given.", minimum=1)
    attention_backend: str | None = option(None, "Attention implementation (torch, triton); the fastest unless set.")
    task: str = option(
        "auto",
        "What the model is for: the older way to say --runner and --convert.",
        choices=("auto", "generate", "embed", "embedding", "classify", "score", "reward", "transcription", "draft"),
    )
    runner: str = option(
        "auto",
        "Whether the model generates text or pools prompts into vectors or scores; auto: as its files say.",
        choices=("auto", "generate", "pooling", "draft"),
    )
    convert: str = option(
        "auto",
        "Turn a generating model into one that embeds or scores.",
        choices=("auto", "none", "embed", "classify", "reward"),
    )
    pooler_config: dict[str, Any] | None = option(
        None,
        "How to pool, instead of as the model says: pooling_type CLS, LAST or MEAN; use_activation true or false; the "
        "task of requests that name none.",
    )
    enable_prompt_embeds: bool = option(
        False, "Let prompts be embeddings: whoever may send them can have the model compute anything."
    )
    device: str = option("auto", "Where to compute.", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class LoadOptions:
    """How the weights come in."""

    load_format: str = option(
        "auto",
        "File format of the weights; dummy fills in random values without reading any.",
        choices=("auto", "safetensors", "gguf", "dummy"),
    )
    use_tqdm_on_load: bool = option(True, "Show how far the start is.")
    download_dir: str | None = option(None, "Where downloads go, instead of Hugging Face's cache.", metavar="DIR")


@dataclass(frozen=True)
class CacheOptions:
    """The KV cache and the memory it may take."""

    block_size: int | None = option(None, "Tokens in a KV block; 16 unless set.", minimum=1, maximum=256)
    gpu_memory_utilization: float = option(
        0.92, "Share of the GPU's memory that this server may take.", minimum=0.01, maximum=1
    )
    kv_cache_memory_bytes: int | None = option(
        None, "Size of the KV cache, whatever --gpu-memory-utilization says.", size=True, minimum=1
    )
    cpu_kv_cache_gb: float | None = option(None, "GiB of memory for the KV cache on a CPU.", minimum=0.001)
    enable_prefix_caching: bool = option(True, "Reuse the KV blocks of prompts that begin alike.")
    prefix_caching_hash_algo: str = option("sha256", "Hash that names a cached block.", choices=("sha256",))
    num_gpu_blocks_override: int | None = option(None, "Number of KV blocks, for tests.", minimum=1)


@dataclass(frozen=True)
class SchedulerOptions:
    """What runs in a step, and what waits."""

    max_num_batched_tokens: int | None = option(None, "Most tokens computed in a step.", size=True, minimum=1)
    max_num_seqs: int | None = option(None, "Most requests running at once.", size=True, minimum=1)
    enable_chunked_prefill: bool = option(True, "Let a long prompt take several steps.")
    long_prefill_token_threshold: int = option(
        0, "Most prompt tokens of one request in a step; 0 for any.", size=True, minimum=0
    )
    scheduling_policy: str = option(
        "fcfs", "Who is served first: first come, or lowest priority value.", choices=("fcfs", "priority")
    )
    async_scheduling: bool = option(True, "Plan a step while the one before it runs.")
    max_num_queued_reqs: int | None = option(None, "Most waiting requests; more are answered 429.", minimum=1)
    max_num_queued_tokens: int | None = option(
        None, "Most prompt tokens waiting; more are answered 429.", size=True, minimum=1
    )


@dataclass(frozen=True)
class FrontendOptions:
    """Text in and out."""

    chat_template: str | None = option(None, "Chat template, as a file or as text, instead of the model's own.")
    chat_template_content_format: str = option(
        "auto",
        "How the template gets a message's content: as text, or as OpenAI's list of parts.",
        choices=("auto", "string", "openai"),
    )
    trust_request_chat_template: bool = option(False, "Let requests bring their own chat template.")
    default_chat_template_kwargs: dict[str, Any] = option({}, "Template variables for requests that set none.")
    structured_outputs_config: dict[str, Any] = option(
        {}, "Settings of structured output: backend, disable_any_whitespace, disable_additional_properties."
    )
    stream_interval: int = option(1, "Tokens in a streamed chunk.", minimum=1)
    engine_iteration_timeout: float = option(
        60.0, "Seconds without a sign of life, while work is pending, after which the engine counts as hung.", minimum=1
    )


@dataclass(frozen=True)
class ServerOptions:
    """The HTTP server."""

    host: str | None = option(None, "Address to listen on; all of them unless set.")
    port: int = option(8000, "Port to listen on; 0 picks a free one.", minimum=0, maximum=65535)
    uds: str | None = option(None, "Unix domain socket to listen on instead.", metavar="PATH")
    api_key: list[str] = option([], "Keys of which clients must present one.", metavar="KEY", secret=True)
    protect_metrics: bool = option(False, "Let --api-key guard /metrics too.")
    max_queued_per_key: int | None = option(
        None,
        "Most unfinished requests of one API key, or of one address where there are no keys; more are answered 429.",
        minimum=1,
    )
    max_requests_per_minute_per_key: int | None = option(
        None, "Most requests in a minute of one API key, or of one address; more are answered 429.", minimum=1
    )
    root_path: str | None = option(None, "Path prefix that a proxy in front strips.")
    ssl_keyfile: str | None = option(None, "TLS private key.", metavar="FILE")
    ssl_certfile: str | None = option(None, "TLS certificate.", metavar="FILE")
    ssl_ca_certs: str | None = option(None, "Certificates that a client's is checked with.", metavar="FILE")
    ssl_cert_reqs: int = option(
        0, "Whether clients need a certificate: 0 no, 1 checked if given, 2 yes.", minimum=0, maximum=2
    )
    ssl_ciphers: str | None = option(None, "Ciphers of TLS 1.2 and older, as OpenSSL lists them.", metavar="LIST")
    enable_ssl_refresh: bool = option(False, "Read the certificate files anew when they change.")
    allowed_origins: list[str] = option([], "Origins that browsers may call from; none unless set.", metavar="ORIGIN")
    allowed_methods: list[str] = option(["*"], "Methods allowed to them.", metavar="METHOD")
    allowed_headers: list[str] = option(["*"], "Headers allowed to them.", metavar="HEADER")
    allow_credentials: bool = option(False, "Whether they may send cookies.")
    uvicorn_log_level: str = option(
        "info",
        "How much the server logs.",
        choices=("critical", "error", "warning", "info", "debug", "trace"),
    )
    log_config_file: str | None = option(None, "Logging configuration (dictConfig as JSON).", metavar="FILE")
    disable_uvicorn_access_log: bool = option(False, "No log line for each HTTP request.")
    disable_fastapi_docs: bool = option(False, "No /docs, /redoc and /openapi.json.")
    enable_tokenizer_info_endpoint: bool = option(False, "Serve /tokenizer_info, the tokenizer's configuration.")
    disable_ui: bool = option(False, "No chat page at / and no dashboard at /dashboard.")
    server_dev_mode: bool = option(
        False, "Add routes for measurements that are none for strangers: those that empty the caches."
    )
    enable_log_requests: bool = option(False, "Log each request's parameters (never its text).")
    disable_log_stats: bool = option(False, "No statistics, neither logged nor at /metrics.")
    enable_request_id_headers: bool = option(False, "Answer with the request's X-Request-Id.")
    enable_server_load_tracking: bool = option(False, "Count running requests at /load.")
    enable_force_include_usage: bool = option(False, "Stream token counts with every chunk, asked or not.")
    enable_prompt_tokens_details: bool = option(False, "Report cached prompt tokens in usage.")
    return_tokens_as_token_ids: bool = option(False, 'Name tokens in logprobs "token_id:123".')
    sse_keep_alive_interval: float = option(
        0.0, "Seconds after which an idle stream gets a comment line; 0 for never.", minimum=0
    )
    shutdown_timeout: float = option(0.0, "Seconds that running requests get to finish on SIGTERM.", minimum=0)
    request_arrival_timeout: float = option(
        30.0, "Seconds in which a request must have arrived whole; its connection is closed then.", minimum=0.1
    )
    max_stored_responses: int = option(
        1000, "Most responses of /v1/responses kept for later; the least recently used leave first.", minimum=0
    )
    max_stored_response_bytes: int = option(256 * 2**20, "Most memory for them, counted as JSON.", size=True, minimum=0)
    stored_response_lifetime: float = option(
        86400.0, "Seconds after its last use for which a response is kept.", minimum=0
    )
    max_stored_file_bytes: int = option(
        2**30, "Most disk space for /v1/files and what /v1/batches writes; 0 for neither.", size=True, minimum=0
    )
    stored_file_lifetime: float = option(604800.0, "Seconds for which such a file is kept.", minimum=0)
    max_request_bytes: int = option(32 * 2**20, "Largest request body.", size=True, minimum=1)
