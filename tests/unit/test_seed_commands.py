"""Every serving command line of five documents that vLLM's users follow, and the configuration each must give.

A command that asks for what a later version brings is refused with one sentence that names it all.
"""

import shlex
from typing import Any

import pytest

from headrace.cli import serve
from headrace.cli.parser import FlagParser, config_from
from headrace.config import Config
from headrace.errors import ConfigError

QWEN_7B = "/llm/models/DeepSeek-R1-Distill-Qwen-7B"
TENSOR, EXPERT_MODEL = "tensor parallelism", "Qwen/Qwen3-30B-A3B-FP8"


def configuration(command: str) -> Config:
    """What the part of ``command`` after the program's name asks for; environment variables before it are dropped."""
    words = shlex.split(command)
    while "=" in words[0]:
        words.pop(0)
    if words[:2] == ["python3", "-m"]:
        assert words[2] == "vllm.entrypoints.openai.api_server"
        words = words[3:]
    else:
        assert words[:2] == ["vllm", "serve"]
        words = words[2:]
    parser = FlagParser(prog="headrace serve")
    serve.add_arguments(parser)
    return config_from(parser.parse(words))


def refusal(flags: str, needs: str) -> str:
    one = flags.count("--") == 1
    verb, them = ("needs", "it") if one else ("need", "them")
    return f"{flags} {verb} {needs}, which this version does not have yet: leave {them} out."


# The flags that most commands of the Intel guide share, as values.
INTEL = {"dtype": "float16", "enforce_eager": True, "host": "0.0.0.0", "trust_remote_code": True,
         "gpu_memory_utilization": 0.9, "enable_prefix_caching": False, "block_size": 64}  # fmt: skip

INTEL_FLAGS = """--dtype=float16 --enforce-eager --port 8000 --host 0.0.0.0 --trust-remote-code
    --gpu-memory-util=0.9 --no-enable-prefix-caching --disable-log-requests"""
INTEL_OPTIONS = {
    "dtype": "float16",
    "enforce_eager": True,
    "host": "0.0.0.0",
    "trust_remote_code": True,
    "disable_sliding_window": True,
    "gpu_memory_utilization": 0.9,
    "enable_prefix_caching": False,
    "block_size": 64,
}

ACCEPTED: list[tuple[str, str, dict[str, Any]]] = [
    (
        "cheat sheet, one GPU",
        "vllm serve Qwen/Qwen2.5-7B-Instruct --host 0.0.0.0 --port 8000",
        {"model": "Qwen/Qwen2.5-7B-Instruct", "host": "0.0.0.0"},
    ),
    (
        "cheat sheet, run.sh single",
        "vllm serve --model Qwen/Qwen2.5-7B-Instruct",
        {"model": "Qwen/Qwen2.5-7B-Instruct"},
    ),
    (
        "GH200 guide, 8B",
        "vllm serve meta-llama/Meta-Llama-3.1-8B-Instruct --dtype auto",
        {"model": "meta-llama/Meta-Llama-3.1-8B-Instruct"},
    ),
    (
        "homework, one GPU",
        "vllm serve meta-llama/Llama-3.1-8B",
        {"model": "meta-llama/Llama-3.1-8B"},
    ),
    (
        "cheat sheet, profile on one GPU",
        f"vllm serve --profile {EXPERT_MODEL}",
        {"model": EXPERT_MODEL, "profiler_config": {"profiler": "torch"}},
    ),
    (
        "cheat sheet, profile by torch, on one GPU",
        f"""vllm serve {EXPERT_MODEL}
        --profiler-config '{{"profiler": "torch", "torch_profiler_dir": "/fsx/traces"}}'""",
        {"model": EXPERT_MODEL, "profiler_config": {"profiler": "torch", "torch_profiler_dir": "/fsx/traces"}},
    ),
    (
        "cheat sheet, profile by Nsight, dotted, on one GPU",
        f"vllm serve {EXPERT_MODEL} --profiler-config.profiler cuda",
        {"model": EXPERT_MODEL, "profiler_config": {"profiler": "cuda"}},
    ),
    (
        "Intel guide 1.3, compose entry point",
        "python3 -m vllm.entrypoints.openai.api_server --model /llm/models/Qwen3-14B",
        {"model": "/llm/models/Qwen3-14B"},
    ),
    (
        "Intel guide 4.1, no model",
        "python3 -m vllm.entrypoints.openai.api_server",
        {},
    ),
    (
        "Intel guide 1.4 without --quantization, with its --api-key",
        """VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 VLLM_WORKER_MULTIPROC_METHOD=spawn
        python3 -m vllm.entrypoints.openai.api_server
            --model /llm/models/DeepSeek-R1-Distill-Qwen-7B --served-model-name DeepSeek-R1-Distill-Qwen-7B
            --dtype=float16 --enforce-eager --port 8000 --host 0.0.0.0 --trust-remote-code --disable-sliding-window
            --gpu-memory-util=0.9 --no-enable-prefix-caching --max-num-batched-tokens=8192 --disable-log-requests
            --max-model-len=8192 --block-size 64 -tp=1 --api-key xxx""",
        INTEL
        | {
            "model": QWEN_7B,
            "served_model_name": ["DeepSeek-R1-Distill-Qwen-7B"],
            "disable_sliding_window": True,
            "max_num_batched_tokens": 8192,
            "max_model_len": 8192,
            "api_key": ["xxx"],
        },
    ),
    (
        "Intel guide 2.4.2, dots.ocr",
        """TORCH_LLM_ALLREDUCE=1 VLLM_USE_V1=1  CCL_ZE_IPC_EXCHANGE=pidfd VLLM_ALLOW_LONG_MAX_MODEL_LEN=1
        VLLM_WORKER_MULTIPROC_METHOD=spawn python3 -m vllm.entrypoints.openai.api_server --model YOUR_DOTSOCR_PATH
        --enforce-eager --host 0.0.0.0 --trust-remote-code --disable-sliding-window --gpu-memory-util=0.8
        --no-enable-prefix-caching --max-num-batched-tokens=8192  --disable-log-requests  --max-model-len=40000
        --block-size 64 -tp=1 --port 8000 --served-model-name DotsOCR --chat-template-content-format string
        --dtype bfloat16""",
        INTEL
        | {
            "model": "YOUR_DOTSOCR_PATH",
            "dtype": "bfloat16",
            "gpu_memory_utilization": 0.8,
            "disable_sliding_window": True,
            "max_num_batched_tokens": 8192,
            "max_model_len": 40_000,
            "served_model_name": ["DotsOCR"],
            "chat_template_content_format": "string",
        },
    ),
    (
        "Intel guide 2.4.3, MinerU",
        """python3 -m vllm.entrypoints.openai.api_server --model /llm/models/MinerU2.5-2509-1.2B/ --dtype float16
        --enforce-eager --port 8000 --host 0.0.0.0 --trust-remote-code --gpu-memory-util 0.85
        --no-enable-prefix-caching --max-num-batched-tokens=32768 --max-model-len=32768 --block-size 64
        --max-num-seqs 256 --served-model-name MinerU --tensor-parallel-size 1 --pipeline-parallel-size 1
        --logits-processors mineru_vl_utils:MinerULogitsProcessor""",
        INTEL
        | {
            "model": "/llm/models/MinerU2.5-2509-1.2B/",
            "gpu_memory_utilization": 0.85,
            "max_num_batched_tokens": 32_768,
            "max_model_len": 32_768,
            "max_num_seqs": 256,
            "served_model_name": ["MinerU"],
            "logits_processors": ["mineru_vl_utils:MinerULogitsProcessor"],
        },
    ),
    (
        "Intel guide 2.7, the length that fits",
        "vllm serve m --max-model-len 114432",
        {"model": "m", "max_model_len": 114_432},
    ),
    (
        "Intel guide 3, GLM-4V-9B and Baichuan 2",
        """vllm serve THUDM/glm-4v-9b --hf-overrides '{"architectures":["GLM4VForCausalLM"]}'
        --chat_template template.jinja""",
        {
            "model": "THUDM/glm-4v-9b",
            "hf_overrides": {"architectures": ["GLM4VForCausalLM"]},
            "chat_template": "template.jinja",
        },
    ),
    (
        "Intel guide 2.3, embedding",
        f"""python3 -m vllm.entrypoints.openai.api_server --model /llm/models/bge-m3 --served-model-name bge-m3
        --task embed {INTEL_FLAGS} --disable-sliding-window --max-num-batched-tokens=2048 --max-model-len=2048
        --block-size 64 -tp=1""",
        {
            "model": "/llm/models/bge-m3",
            "served_model_name": ["bge-m3"],
            "task": "embed",
            "max_num_batched_tokens": 2048,
            "max_model_len": 2048,
            **INTEL_OPTIONS,
        },
    ),
    (
        "Intel guide 2.3, reranking",
        f"""python3 -m vllm.entrypoints.openai.api_server --model /llm/models/bge-reranker-base
        --served-model-name bge-reranker-base --task classify {INTEL_FLAGS} --disable-sliding-window
        --max-num-batched-tokens=2048 --max-model-len=2048 --block-size 64 -tp=1""",
        {
            "model": "/llm/models/bge-reranker-base",
            "served_model_name": ["bge-reranker-base"],
            "task": "classify",
            "max_num_batched_tokens": 2048,
            "max_model_len": 2048,
            **INTEL_OPTIONS,
        },
    ),
]

REFUSED: list[tuple[str, str, str]] = [
    (
        "lab, two GPUs",
        "vllm serve /mnt/shockwave/soundwave/models/llama3-70b-awq --port 8002 --tensor-parallel-size 2",
        refusal("--tensor-parallel-size 2", TENSOR),
    ),
    (
        "cheat sheet, eight GPUs",
        "vllm serve Qwen/Qwen2.5-14B-Instruct --tensor-parallel-size 8",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, run.sh mp",
        "vllm serve --model Qwen/Qwen2.5-14B-Instruct --tp 8",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, run.sbatch with experts",
        f"""vllm serve {EXPERT_MODEL} --tensor-parallel-size 8 --enable-expert-parallel --data-parallel-size 2
        --data-parallel-size-local 1 --data-parallel-address 10.0.128.193 --data-parallel-rpc-port 13345
        --host 0.0.0.0 --port 8000""",
        refusal("--tensor-parallel-size 8 and --data-parallel-size 2", f"{TENSOR} and data parallelism"),
    ),
    (
        "cheat sheet, a further host of it",
        f"""vllm serve {EXPERT_MODEL} --tensor-parallel-size 8 --enable-expert-parallel --data-parallel-size 2
        --data-parallel-size-local 1 --data-parallel-address 10.0.128.193 --data-parallel-rpc-port 13345
        --data-parallel-start-rank 1 --headless""",
        refusal(
            "--tensor-parallel-size 8, --data-parallel-size 2, --data-parallel-start-rank 1 and --headless",
            f"{TENSOR}, data parallelism and serving across hosts",
        ),
    ),
    (
        "cheat sheet, run.sbatch over Ray",
        f"""vllm serve {EXPERT_MODEL} --tensor-parallel-size 8 --enable-expert-parallel --host 0.0.0.0 --port 8000
        --data-parallel-backend ray --data-parallel-address 10.0.128.193 --data-parallel-size 2""",
        refusal("--tensor-parallel-size 8 and --data-parallel-size 2", f"{TENSOR} and data parallelism"),
    ),
    (
        "cheat sheet, run.sbatch without experts",
        f"vllm serve {EXPERT_MODEL} --tensor-parallel-size 8",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, pipeline",
        """vllm serve deepseek-ai/DeepSeek-V2-Lite --tensor-parallel-size 8 --pipeline-parallel-size 2
        --host 0.0.0.0 --port 8000 --nnodes 2 --master-addr 10.0.128.193 --master-port 29500 --node-rank 0""",
        refusal(
            "--tensor-parallel-size 8, --pipeline-parallel-size 2 and --nnodes 2",
            f"{TENSOR}, pipeline parallelism and serving across hosts",
        ),
    ),
    (
        "cheat sheet, sweep",
        f"vllm serve {EXPERT_MODEL} -tp 8 --enable-expert-parallel",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, sweep of two GPUs",
        "vllm serve Qwen/Qwen1.5-MoE-A2.7B -tp 2 --enable-expert-parallel",
        refusal("--tensor-parallel-size 2", TENSOR),
    ),
    (
        "cheat sheet, profile",
        f"vllm serve --profile {EXPERT_MODEL} --tensor-parallel-size 8",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, profile by torch",
        f"""vllm serve --profiler-config '{{"profiler": "torch", "torch_profiler_dir": "/fsx/traces"}}'
        {EXPERT_MODEL} --tensor-parallel-size 8""",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, profile by Nsight",
        f"""vllm serve {EXPERT_MODEL} --tensor-parallel-size 8 --enable-expert-parallel
        --profiler-config '{{"profiler": "cuda"}}'""",
        refusal("--tensor-parallel-size 8", TENSOR),
    ),
    (
        "cheat sheet, the engine flags of offline_bench.sh",
        """vllm serve --model Qwen/Qwen2-57B-A14B --all2all-backend allgather_reducescatter --tensor-parallel-size 4
        --enable-expert-parallel --gpu-memory-utilization 0.8""",
        refusal("--tensor-parallel-size 4", TENSOR),
    ),
    (
        "homework, four GPUs",
        "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 4",
        refusal("--tensor-parallel-size 4", TENSOR),
    ),
    (
        "Intel guide 1.4",
        """VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 VLLM_WORKER_MULTIPROC_METHOD=spawn
        python3 -m vllm.entrypoints.openai.api_server
            --model /llm/models/DeepSeek-R1-Distill-Qwen-7B --served-model-name DeepSeek-R1-Distill-Qwen-7B
            --dtype=float16 --enforce-eager --port 8000 --host 0.0.0.0 --trust-remote-code --disable-sliding-window
            --gpu-memory-util=0.9 --no-enable-prefix-caching --max-num-batched-tokens=8192 --disable-log-requests
            --max-model-len=8192 --block-size 64 --quantization fp8 -tp=1""",
        refusal("--quantization fp8", "quantized compute"),
    ),
    (
        "Intel guide 2.2, int4",
        f"""python3 -m vllm.entrypoints.openai.api_server --model {QWEN_7B} {INTEL_FLAGS} --disable-sliding-window
        --max-num-batched-tokens=8192 --max-model-len=8192 --block-size 64 --quantization sym_int4 -tp=1""",
        refusal("--quantization sym_int4", "quantized compute"),
    ),
    *[
        (
            f"Intel guide {chapter}",
            f"""python3 -m vllm.entrypoints.openai.api_server --model /llm/models/{model} --served-model-name {model}
            --allowed-local-media-path /llm/models/test {INTEL_FLAGS} --max-num-batched-tokens=5120
            --max-model-len=5120 --block-size {block_size} --quantization fp8 -tp=1""",
            refusal(
                "--quantization fp8 and --allowed-local-media-path /llm/models/test",
                "quantized compute and media in prompts",
            ),
        )
        for chapter, model, block_size in (
            ("2.4, images", "Qwen2.5-VL-7B-Instruct", 64),
            ("2.4.1, audio", "whisper-medium", 16),
            ("2.5, omni", "Qwen2.5-Omni-7B", 64),
        )
    ],
    (
        "Intel guide 2.6, data parallelism",
        "vllm serve m --dp 2",
        refusal("--data-parallel-size 2", "data parallelism"),
    ),
    (
        "Intel guide 2.9, Ray over two hosts",
        """python3 -m vllm.entrypoints.openai.api_server --model /llm/models/Qwen2.5-7B-Instruct --dtype=float16
        --enforce-eager --port 8005 --host 0.0.0.0 --trust-remote-code --disable-sliding-window --gpu-memory-util=0.9
        --no-enable-prefix-caching --max-num-batched-tokens=8192 --disable-log-requests --max-model-len=20000
        --block-size 64 --served-model-name test -tp=2 -pp=1 --distributed-executor-backend ray""",
        refusal("--tensor-parallel-size 2", TENSOR),
    ),
    (
        "GH200 guide, 70B",
        "vllm serve meta-llama/Meta-Llama-3.1-70B-Instruct --dtype auto --cpu-offload-gb 90",
        refusal("--cpu-offload-gb 90", "weight offloading"),
    ),
]


@pytest.mark.parametrize(("command", "expected"), [row[1:] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepted(command: str, expected: dict[str, Any]) -> None:
    config = configuration(command)
    defaults = Config().flat()
    assert {name: value for name, value in config.flat().items() if value != defaults[name]} == expected


@pytest.mark.parametrize(("command", "sentence"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(command: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        configuration(command)
    assert str(error.value) == sentence


def test_one_gpu_over_ray(caplog: pytest.LogCaptureFixture) -> None:
    config = configuration(
        "vllm serve m -tp=1 -pp=1 -dp 1 --distributed-executor-backend ray --enable-expert-parallel --all2all-backend x"
    )
    assert config.parallel.distributed_executor_backend == "ray"
    assert [record.message for record in caplog.records] == [
        f"{flag} has no effect: one device needs no coordination."
        for flag in ("--distributed-executor-backend", "--enable-expert-parallel", "--all2all-backend")
    ]


def test_the_arguments_in_the_lab_log() -> None:
    model = "/mnt/shockwave/soundwave/models/llama3-70b-awq"
    config = Config.from_kwargs(model_tag=model, api_server_count=1, port=8002, tensor_parallel_size=1)
    assert (config.model.model, config.server.port) == (model, 8002)
