"""Two ranks that compute and all-reduce as the layers of a tensor-parallel model do, recorded by torch.profiler.

``python benchmarks/nccl_trace.py OUT`` needs two GPUs and leaves ``OUT/rank0.json.gz`` and ``OUT/rank1.json.gz`` for
``headrace profile``, which is to name the all-reduce.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import profile, record_function

DIM, FFN, LAYERS, STEPS = 4096, 14336, 4, 5
TOKENS = {"decode": 32, "prefill": 8192}  # of a step: all-reduces of 256 KiB and of 64 MiB in bfloat16


def step(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """``x``, (tokens, DIM), after LAYERS pairs of a column-parallel and a row-parallel product."""
    for _ in range(LAYERS):
        x = torch.nn.functional.silu(x @ up) @ down
        dist.all_reduce(x)
        x = x / x.abs().amax().clamp_min(1e-3)
    return x


def run_rank(rank: int, world: int, out: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "NCCL_NVLS_ENABLE": "0"}
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", rank=rank, world_size=world, device_id=device)
    torch.set_default_device(device)
    torch.set_default_dtype(torch.bfloat16)
    up = torch.randn(DIM, FFN // world) / 64
    down = torch.randn(FFN // world, DIM) / 64
    inputs = {kind: torch.randn(tokens, DIM) for kind, tokens in TOKENS.items()}
    for x in inputs.values():
        step(x, up, down)
    torch.cuda.synchronize()
    dist.barrier()
    with profile() as recorder:
        for kind, x in inputs.items():
            for i in range(STEPS):
                with record_function(f"headrace: step {i} ({kind}, {TOKENS[kind]} tokens)"):
                    step(x, up, down)
        torch.cuda.synchronize()
    recorder.export_chrome_trace(str(out / f"rank{rank}.json.gz"))
    dist.destroy_process_group()


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    mp.spawn(run_rank, args=(2, directory), nprocs=2)
