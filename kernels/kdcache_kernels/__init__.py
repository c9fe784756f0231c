"""Distillation kernels that stand alone: torch is the only import until an op runs on a CPU.

    loss = topk_kl(logits, ids, logprobs, tail_logmass=tail)   # training: loss and dense gradient
    loss, soft, hard = topk_kl_rows(logits, ids, logprobs, tail_logmass=tail)  # and of every row
    ids, logprobs, tail, stat = topk_encode(teacher_logits, 64)  # the teacher's side

Every loss is registered with torch's dispatcher, so `torch.compile(fullgraph=True)` traces through
it. CPU tensors run a Numba kernel, compiled at first use and cached on disk, CUDA tensors a Triton
kernel; float64 runs in plain torch, as do other devices (the table is in `_backends.py`).

Raises ImportError if kdcache and kdcache-kernels are installed in different versions.
"""

from kdcache_kernels import _version  # first: it refuses files of two versions
from kdcache_kernels._buffer import empty_cache
from kdcache_kernels.attention_mse import attention_mse
from kdcache_kernels.hidden_mse import hidden_mse
from kdcache_kernels.layer_costs import layer_costs
from kdcache_kernels.linear_kl import linear_kl, linear_kl_rows
from kdcache_kernels.linear_topk_kl import linear_topk_kl, linear_topk_kl_rows
from kdcache_kernels.pair_distances import pair_distances
from kdcache_kernels.quantize_rows import dequantize_rows, quantize_rows
from kdcache_kernels.relation_kl import relation_kl
from kdcache_kernels.topk_encode import topk_encode
from kdcache_kernels.topk_kl import topk_kl, topk_kl_rows

__all__ = [
    "attention_mse",
    "dequantize_rows",
    "empty_cache",
    "hidden_mse",
    "layer_costs",
    "linear_kl",
    "linear_kl_rows",
    "linear_topk_kl",
    "linear_topk_kl_rows",
    "pair_distances",
    "quantize_rows",
    "relation_kl",
    "topk_encode",
    "topk_kl",
    "topk_kl_rows",
]

__version__ = _version.__version__
