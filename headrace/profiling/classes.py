"""Which kind of work a kernel, copy or operator does, told from its name. Owns the names; knows no trace."""

import re
from functools import cache

ALL_REDUCE, OTHER, IDLE = "all-reduce", "other", "idle"

# Class -> what names it; the first that matches decides, so a name with several hints stands under the strongest.
RULES = {
    # NCCL and RCCL; custom kernels of vLLM and SGLang (cross_device_reduce_1stage), of TensorRT-LLM and FlashInfer
    # (oneShotAllReduceKernel, allreduce_fusion_kernel), of torch's symmetric memory (two_shot_all_reduce_kernel).
    ALL_REDUCE: r"all_?reduce|cross_device_reduce",
    "other collectives": r"nccl|rccl|c10d|all_?gather|reduce_?scatter|all_?to_?all|nvshmem|deep_?ep",
    "copies": r"^mem(cpy|set)|direct_copy|copy_device_to_device|aten::(copy_|to|_to_copy|contiguous|clone|cat|fill_)$",
    "attention": r"atten|flash|fmha|sdpa|paged|_?mha_|rope|rotary|reshape_and_cache|_turn_heads|kv_cache",
    "sampling": r"gumbel|sampl|arg_?max|top_?[kp]\b|top_?k_?top_?p|multinomial|softmax|sort|penalt|_choose_kernel"
    r"|_threshold_kernel",
    "GEMM": r"gemm|gemv|matvec|matmul|nvjet|cutlass|cublas|splitk|xmma|marlin|machete|moe|_few_rows|int[48]pack"
    r"|aten::(mm|bmm|addmm|addbmm|baddbmm|linear|mv|dot)$|_mm_|onednn|mkldnn",
    "norm and activation": r"norm|act_and_mul|silu|gelu|relu|sigmoid|tanh|elementwise|reduce_kernel"
    r"|aten::(mul|add|sub|div|pow|mean|sum|rsqrt|neg|exp|where|clamp)_?$",
}
PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in RULES.items()}
CLASSES = (*RULES, OTHER, IDLE)


@cache
def class_of(name: str) -> str:
    """One of ``CLASSES`` but idle."""
    return next((kind for kind, pattern in PATTERNS.items() if pattern.search(name)), OTHER)
