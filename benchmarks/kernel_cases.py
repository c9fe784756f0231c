"""What benchmarks/kernel_resources.py compiles: specialisations of the Triton kernels.

V and the strides of logits are taken to divide nothing; those of hidden states, all multiples of 16
in practice, to be such.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kdcache_kernels import _triton, _triton_scale
from kdcache_kernels.hidden_mse import _triton as hidden_mse
from kdcache_kernels.layer_costs import _triton as layer_costs
from kdcache_kernels.linear_kl import _triton as linear_kl
from kdcache_kernels.quantize_rows import _triton as quantize_rows
from kdcache_kernels.relation_kl import _triton as relation_kl
from kdcache_kernels.relation_kl.spec import KINDS
from kdcache_kernels.topk_encode import _triton as topk_encode
from kdcache_kernels.topk_kl import _triton as topk_kl
from kdcache_kernels.topk_kl import _triton_kernels
from kdcache_kernels.topk_kl._shapes import light, listed

VOCABULARIES = (30522, 32000, 50257, 128256, 151936)
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "i8": 1, "u8": 1}

# Types of the arguments that have the same in every case; the others are named with the case.
POINTERS = {"ids": "i64", "labels": "i64", "above": "i32", "codes": "i8", "scale": "fp16"}
POINTERS |= {"starts": "i64"}
FLOATS = {"T", "soft_weight", "hard_weight", "scale", "t_scale"}


class Case(NamedTuple):
    """One specialisation of a kernel; `types` are those of pointers, by name without `_ptr`."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    registers: int | None = None


def topk_kl_case(
    target: int,
    v: int,
    dtype: str,
    *,
    labels: bool = False,
    temperature: float = 1.0,
    kind: int = 0,
    k: int = 64,
    shape: Any = None,
) -> Case:
    """topk_kl as it is launched for contiguous rows of `v` logits; `shape` is of the plan."""
    align = 16 // BYTES[dtype]
    spare = light(k, BYTES[dtype], labels)
    how = topk_kl.plan(v, align - 1, shape or listed(v, divmod(target, 10), spare))
    constants = {
        "K": k,
        "BLOCK_K": _triton.power_of_2(k),
        "UNSIGNED": False,
        "HARD": labels,
        "KIND": kind,
        "BUCKET": True,
        "DIVIDE": True,
        "HAS_REST": True,
        "POWER": _triton.power_of(temperature) if labels else 1,
        "NEED_GRAD": True,
        "ALIGN": align,
        "SAME": True,
        "WORDS": topk_kl.words_of(v, align),
        "BLOCK": how.shape.block,
        "LAST": how.last,
    }
    extras = [f"K={k}"] if k != 64 else []
    extras += [f"CE T={temperature:g}"] if labels else []
    extras += [("forward", "reverse", "js")[kind]] if kind else []
    name = " ".join([f"topk_kl V={v} {dtype}", *extras])
    types = {"x": dtype, "out": "fp32" if dtype == "fp16" else dtype}
    kernel = _triton_kernels.rows_kernel
    return Case(name, kernel, types, constants, how.shape.num_warps, how.shape.registers)


def hidden_mse_case(
    h: int,
    dtype: str,
    codes: str,
    *,
    groups: int = 1,
    normalize: str = "none",
    alike: bool = False,
) -> Case:
    """hidden_mse of rows of `h` columns; codes of bytes are int8 (`i8`) or e4m3 (`u8`).

    Rows that are `alike` have one weight.
    """
    held = _triton.tile(groups, h // groups)
    constants = {
        "G": groups,
        "Q": h // groups,
        "MODE": hidden_mse.MODES[normalize],
        "FP8": codes == "u8",
        "HAS_SCALE": codes == "i8",
        "ALIKE": alike,
        "NEED_GRAD": True,
        "R": held.rows,
        "BLOCK_G": held.groups,
        "BLOCK_Q": held.width,
    }
    name = f"hidden_mse H={h} G={groups} {dtype} {codes} {normalize}" + alike * " alike"
    types = {"student": dtype, "gradient": dtype, "codes": codes}
    return Case(name, hidden_mse.rows_kernel, types, constants, held.num_warps)


def layer_costs_case(kernel: str, h: int, dtype: str, codes: str) -> Case:
    """A kernel of layer_costs, of 6 and 12 layers whose rows of `h` columns are aligned."""
    held = _triton.tile(1, h)
    constants = {"G": 1, "Q": h, "FP8": codes == "u8", "HAS_SCALE": codes == "i8", "ALIGNED": True}
    constants |= {"R": held.rows, "BLOCK_G": held.groups, "BLOCK_Q": held.width}
    if kernel == "costs":
        constants |= {"BLOCK_M": 8, "BLOCK_L": 16}
    types = {"table": "i64", "student": dtype, "gradient": dtype, "codes": codes, "scale": "fp32"}
    function = getattr(layer_costs, f"{kernel}_kernel")
    name = f"layer_costs {kernel} H={h} {dtype} {codes}"
    return Case(name, function, types, constants, held.num_warps)


def quantize_case(h: int, groups: int, dtype: str) -> Case:
    """quantize_rows of rows of `h` columns."""
    held = _triton.tile(groups, h // groups)
    constants = {"G": groups, "Q": h // groups, "R": held.rows}
    constants |= {"BLOCK_G": held.groups, "BLOCK_Q": held.width}
    name = f"quantize_rows H={h} G={groups} {dtype}"
    return Case(name, quantize_rows.rows_kernel, {"x": dtype}, constants, held.num_warps)


def topk_encode_case(v: int, dtype: str) -> Case:
    """The pass of topk_encode over rows of `v` logits, for a tail at T = 2."""
    constants = {"POWER": 2, "ALIGN": 16 // BYTES[dtype], "BLOCK": topk_encode.BLOCK}
    types = {"x": dtype, "last": dtype}
    return Case(
        f"topk_encode V={v} {dtype}",
        topk_encode.rows_kernel,
        types,
        constants,
        topk_encode.NUM_WARPS,
        topk_encode.REGISTERS,
    )


def linear_kl_case(v: int, dtype: str, *, kind: int = 0, labels: bool = False) -> Case:
    """The row kernel of linear_kl, in buffers as it has them: rows are padded."""
    block = linear_kl.block_of(v, kind, labels)
    constants = {
        "BIAS": True,
        "KIND": kind,
        "HARD": labels,
        "POWER": 2 if labels else 1,
        "NEED_GRAD": True,
        "ALIGN": 16 // BYTES[dtype],
        "BLOCK": block,
        "BLOCKS": -(-v // block),
    }
    extras = [("forward", "reverse", "js")[kind]] if kind else []
    extras += ["CE T=2"] if labels else []
    name = " ".join([f"linear_kl V={v} {dtype}", *extras])
    types, warps = {"x": dtype}, linear_kl.NUM_WARPS
    return Case(name, linear_kl.rows_kernel, types, constants, warps, linear_kl.REGISTERS)


def parts_case(tokens: int, dtype: str, kind: str) -> Case:
    """relation_kl, of vectors with themselves, and attention_mse: 12 heads of 64 columns."""
    block = max(relation_kl.NARROWEST, _triton.power_of_2(tokens))
    own = kind == "divergence"
    constants = {"PARTS": 12, "D": 64, "E": 64, "KIND": KINDS.index(kind), "OWN": own}
    constants |= {"NEED_X": True, "NEED_Y": not own, "BLOCK": block}
    constants |= {"BLOCK_D": relation_kl.columns(64), "BLOCK_E": relation_kl.columns(64)}
    types = dict.fromkeys(("x", "y", "t", "u", "dx", "dy"), dtype)
    op = "relation_kl" if own else f"attention_mse {kind}"
    name = f"{op} L={tokens} {dtype}"
    return Case(name, relation_kl.parts_kernel, types, constants, relation_kl.warps(block))


def scale_case(dtype: str) -> Case:
    """The gradient of any op times that of the loss, in place."""
    constants = {"BLOCK": _triton_scale.BLOCK}
    return Case(
        f"scale {dtype}",
        _triton_scale.scale_kernel,
        {"x": dtype},
        constants,
        _triton_scale.NUM_WARPS,
    )


def cases(target: int) -> Iterator[Case]:
    """What is compiled for a target: every vocabulary and op everywhere, the variants once."""
    for v in VOCABULARIES:
        yield topk_kl_case(target, v, "bf16")
    yield topk_kl_case(target, 30522, "fp32")
    yield topk_kl_case(target, 30522, "bf16", labels=True, temperature=2)
    for alike in (False, True):
        yield hidden_mse_case(768, "bf16", "i8", alike=alike)
    yield layer_costs_case("costs", 768, "bf16", "i8")
    yield layer_costs_case("gradient", 768, "bf16", "i8")
    yield quantize_case(768, 6, "bf16")
    yield topk_encode_case(30522, "bf16")
    for dtype in ("bf16", "fp32"):
        yield linear_kl_case(30522, dtype)
    for tokens in (32, 64, 128):
        yield parts_case(tokens, "bf16", "divergence")
    for kind in ("scores", "probabilities"):
        yield parts_case(128, "bf16", kind)
    for dtype in ("bf16", "fp32"):
        yield scale_case(dtype)
    if target == 80:
        yield hidden_mse_case(768, "bf16", "u8", normalize="l2")  # it has no fp8
    if target == 90:
        yield topk_kl_case(target, 128256, "fp32")
        yield topk_kl_case(target, 30522, "fp16")
        yield topk_kl_case(target, 30522, "bf16", labels=True, temperature=4, kind=2)
        yield topk_kl_case(target, 128256, "bf16", labels=True, temperature=3)
        yield topk_kl_case(target, 30522, "bf16", k=256, labels=True, temperature=3, kind=2)
        for k in (512, 1024):
            yield topk_kl_case(target, 30522, "bf16", k=k, labels=True, temperature=2)
        yield topk_kl_case(target, 30522, "fp32", k=256)
        yield topk_kl_case(target, 30522, "fp32", labels=True, temperature=3, kind=2)
        yield linear_kl_case(30522, "bf16", kind=1)
        for dtype in ("bf16", "fp32"):
            yield linear_kl_case(30522, dtype, kind=2, labels=True)
        yield hidden_mse_case(768, "bf16", "i8", groups=6, normalize="layernorm")
        yield hidden_mse_case(16384, "fp32", "bf16", normalize="layernorm")
        for tokens in (32, 64):
            yield parts_case(tokens, "fp32", "divergence")


def type_of(case: Case, name: str) -> str:
    """How Triton calls the type of an argument."""
    if name in case.constants:
        return "constexpr"
    if name.endswith("_ptr"):
        short = name.removesuffix("_ptr")
        return "*" + case.types.get(short, POINTERS.get(short, "fp32"))
    return "fp32" if name in FLOATS else "i32"
