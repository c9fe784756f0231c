"""Registers, stack, spills and load widths of the GPU kernels, compiled without a GPU.

    python benchmarks/kernel_resources.py         a table, and results/kernel_resources.json
    python benchmarks/kernel_resources.py --json  the rows as JSON on the standard output

V and the strides of logits are taken to divide nothing; those of hidden states, all multiples of 16
in practice, to be such.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kdcache_kernels import _triton
from kdcache_kernels.hidden_mse import _triton as hidden_mse
from kdcache_kernels.layer_costs import _triton as layer_costs
from kdcache_kernels.linear_kl import _triton as linear_kl
from kdcache_kernels.quantize_rows import _triton as quantize_rows
from kdcache_kernels.topk_encode import _triton as topk_encode
from kdcache_kernels.topk_kl import _triton as topk_kl
from kdcache_kernels.topk_kl import _triton_kernels

TARGETS = (80, 90, 100)
VOCABULARIES = (30522, 32000, 50257, 128256, 151936)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "i8": 1, "u8": 1}

# Types of the arguments that have the same in every case; the others are named with the case.
POINTERS = {"ids": "i64", "labels": "i64", "above": "i32", "codes": "i8", "scale": "fp16"}
FLOATS = {"T", "soft_weight", "hard_weight"}


class Case(NamedTuple):
    """One specialisation of a kernel; `types` are those of pointers, by name without `_ptr`."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    registers: int | None = None


class Row(NamedTuple):
    """What the assembler made of a case."""

    target: int
    name: str
    num_warps: int
    registers: int
    stack_bytes: int
    spills: int
    loads: dict[str, int]
    stores: dict[str, int]


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
    how = topk_kl.plan(v, align - 1, shape)
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
        "WORDS": _triton.power_of_2(-(-(v + align - 1) // 32)),
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
    h: int, dtype: str, codes: str, *, groups: int = 1, normalize: str = "none"
) -> Case:
    """hidden_mse of rows of `h` columns; codes of bytes are int8 (`i8`) or e4m3 (`u8`)."""
    held = _triton.tile(groups, h // groups)
    constants = {
        "G": groups,
        "Q": h // groups,
        "MODE": hidden_mse.MODES[normalize],
        "FP8": codes == "u8",
        "HAS_SCALE": codes == "i8",
        "NEED_GRAD": True,
        "R": held.rows,
        "BLOCK_G": held.groups,
        "BLOCK_Q": held.width,
    }
    name = f"hidden_mse H={h} G={groups} {dtype} {codes} {normalize}"
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
    constants = {
        "BIAS": True,
        "KIND": kind,
        "HARD": labels,
        "POWER": 2 if labels else 1,
        "NEED_GRAD": True,
        "ALIGN": 16 // BYTES[dtype],
        "BLOCK": linear_kl.BLOCK,
        "BLOCKS": -(-v // linear_kl.BLOCK),
    }
    extras = [("forward", "reverse", "js")[kind]] if kind else []
    extras += ["CE T=2"] if labels else []
    name = " ".join([f"linear_kl V={v} {dtype}", *extras])
    return Case(name, linear_kl.rows_kernel, {"x": dtype}, constants, linear_kl.NUM_WARPS)


def cases(target: int) -> Iterator[Case]:
    """What is compiled for a target: every vocabulary and op everywhere, the variants once."""
    for v in VOCABULARIES:
        yield topk_kl_case(target, v, "bf16")
    yield topk_kl_case(target, 30522, "fp32")
    yield topk_kl_case(target, 30522, "bf16", labels=True, temperature=2)
    yield hidden_mse_case(768, "bf16", "i8")
    yield layer_costs_case("costs", 768, "bf16", "i8")
    yield layer_costs_case("gradient", 768, "bf16", "i8")
    yield quantize_case(768, 6, "bf16")
    yield topk_encode_case(30522, "bf16")
    for dtype in ("bf16", "fp32"):
        yield linear_kl_case(30522, dtype)
    if target == 80:
        yield hidden_mse_case(768, "bf16", "u8", normalize="l2")  # it has no fp8
    if target == 90:
        yield topk_kl_case(target, 128256, "fp32")
        yield topk_kl_case(target, 30522, "fp16")
        yield topk_kl_case(target, 30522, "bf16", labels=True, temperature=4, kind=2)
        yield topk_kl_case(target, 128256, "bf16", labels=True, temperature=3)
        yield topk_kl_case(target, 30522, "bf16", k=1024)
        yield linear_kl_case(30522, "bf16", kind=1)
        yield linear_kl_case(30522, "bf16", kind=2, labels=True)
        yield hidden_mse_case(768, "bf16", "i8", groups=6, normalize="layernorm")
        yield hidden_mse_case(16384, "fp32", "bf16", normalize="layernorm")


def compiled(case: Case, target: int) -> bytes:
    """The machine code of a case."""
    names = case.kernel.arg_names
    types = {name: _type(case, name) for name in names}
    divisible = {name for name in names if types[name].startswith("*")}
    if "G" in names:
        divisible |= {"stride", "codes_stride"}
    if "t_stride" in names:
        divisible |= {"stride", "t_stride"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in divisible}
    source = ASTSource(case.kernel, types, case.constants, aligned)
    options = {
        "num_warps": case.num_warps,
        "maxnreg": case.registers or _triton.max_registers(case.num_warps),
    }
    kernel = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return bytes(kernel.asm["cubin"])


def _type(case: Case, name: str) -> str:
    if name in case.constants:
        return "constexpr"
    if name.endswith("_ptr"):
        short = name.removesuffix("_ptr")
        return "*" + case.types.get(short, POINTERS.get(short, "fp32"))
    return "fp32" if name in FLOATS else "i32"


def inspected(case: Case, target: int, code: bytes) -> Row:
    """Read registers, stack and memory instructions off the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(code)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        listing = _tool("nvdisasm", "-c", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage for {case.name}:\n{usage}")
    operations = Counter(re.findall(r"\b(?:LDG|STG|LDL|STL)\b[.A-Z0-9]*", listing))
    return Row(
        target,
        case.name,
        case.num_warps,
        int(found[1]),
        int(found[2]),
        sum(n for name, n in operations.items() if name.startswith(("LDL", "STL"))),
        _widths(operations, "LDG"),
        _widths(operations, "STG"),
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / name, *arguments], capture_output=True, text=True, check=True
    ).stdout


def _widths(operations: Counter[str], name: str) -> dict[str, int]:
    """How many instructions move how many bits a thread."""
    widths: Counter[str] = Counter()
    for operation, n in operations.items():
        if operation.startswith(name):
            width = re.search(r"\.(?:U|S)?(8|16|64|128)\b", operation)
            widths[width[1] if width else "32"] += n
    return dict(sorted(widths.items(), key=lambda item: -int(item[0])))


def resources(targets: tuple[int, ...]) -> list[Row]:
    """Compile and inspect every case; what differs in name only is compiled once."""
    rows, seen = [], {}
    for target in targets:
        for case in cases(target):
            key = (target, str(case[1:]))
            if key not in seen:
                seen[key] = inspected(case, target, compiled(case, target))
            rows.append(seen[key]._replace(name=case.name))
    return rows


def table(rows: list[Row]) -> str:
    """Columns for people."""
    lines = [f"{'sm':>4} {'kernel':44} {'warps':>5} {'regs':>4} {'stack':>5}  loads; stores"]
    for row in rows:
        moved = "; ".join(
            " ".join(f"{n}x{width}" for width, n in widths.items())
            for widths in (row.loads, row.stores)
        )
        lines.append(
            f"{row.target:4} {row.name:44} {row.num_warps:5} "
            f"{row.registers:4} {row.stack_bytes:5}  {moved}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON, write nothing")
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS)
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("error: TRITON_INTERPRET=1 makes kernels that cannot be compiled: unset it")
    rows = resources(tuple(options.targets))
    figures = {"triton": triton.__version__, "kernels": [row._asdict() for row in rows]}
    if options.json:
        print(json.dumps(figures))
        return
    from record import save  # reads the machine's figures, which the JSON above does without

    print(table(rows))
    save("kernel_resources", figures)


if __name__ == "__main__":
    main()
