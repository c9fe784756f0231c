"""Registers, stack, spills and load widths of the GPU kernels, compiled without a GPU.

    python benchmarks/kernel_resources.py               tables, and results/kernel_resources.json
    python benchmarks/kernel_resources.py --triton 3.6  the same of another Triton, fetched by pip,
                                                        and results/kernel_resources_3.6.json
    python benchmarks/kernel_resources.py --json        what is found as JSON on the standard output

The second table holds topk_kl against the memory of two cards, in place and out of it: the machine
code is the same. The command fails where the goal for them is missed (`kernel_floors.py`).
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
from typing import NamedTuple

import triton
from kernel_cases import Case, cases, topk_kl_case, type_of
from kernel_floors import Floor, floors
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kdcache_kernels import _triton
from kdcache_kernels.topk_kl import _triton as topk_kl
from kdcache_kernels.topk_kl._shapes import listed

ROOT = Path(__file__).parents[1]
TARGETS = (80, 90, 100)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
HELD = (30522, 50257, 128256, 151936, 262144)  # vocabularies held against a card's memory


class Row(NamedTuple):
    """What the assembler made of a case."""

    target: int
    name: str
    num_warps: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    spills: int
    loads: dict[str, int]
    stores: dict[str, int]


class Code(NamedTuple):
    """Machine code as NVIDIA's tools print it: what it uses, and its instructions by line."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    listing: str


def compiled(case: Case, target: int) -> Code:
    """The machine code of a case."""
    names = case.kernel.arg_names
    types = {name: type_of(case, name) for name in names}
    divisible = {name for name in names if types[name].startswith("*")}
    if "G" in names:
        divisible |= {"stride", "codes_stride"}
    if "t_stride" in names:
        divisible |= {name for name in names if name.endswith("stride")}
    if "factor_ptr" in names:
        divisible.add("n")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in divisible}
    source = ASTSource(case.kernel, types, case.constants, aligned)
    options = {
        "num_warps": case.num_warps,
        "maxnreg": case.registers or _triton.max_registers(case.num_warps),
    }
    kernel = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    return read(bytes(kernel.asm["cubin"]), case.name)


def read(cubin: bytes, name: str) -> Code:
    """Take machine code apart."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool("cuobjdump", "-res-usage", str(path))
        listing = _tool("nvdisasm", "-c", "-gi", str(path))
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage for {name}:\n{usage}")
    return Code(*map(int, found.groups()), listing)


def inspected(case: Case, target: int) -> Row:
    """Registers, stack and memory instructions of a case."""
    code = compiled(case, target)
    operations = Counter(re.findall(r"\b(?:LDG|STG|LDL|STL)\b[.A-Z0-9]*", code.listing))
    return Row(
        target,
        case.name,
        case.num_warps,
        code.registers,
        code.stack_bytes,
        code.shared_bytes,
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
                seen[key] = inspected(case, target)
            rows.append(seen[key]._replace(name=case.name))
    return rows


def held() -> Iterator[Floor]:
    """topk_kl of bf16 against the memory of a card, whose compute capability is 9.0."""
    for v in HELD:
        case = topk_kl_case(90, v, "bf16")
        code = compiled(case, 90)
        plan = topk_kl.plan(v, case.constants["ALIGN"] - 1, listed(v, (9, 0)))
        yield from floors(v, plan, code.registers, code.shared_bytes, code.listing)


def table(rows: list[Row]) -> str:
    """Columns for people."""
    head = f"{'sm':>4} {'kernel':44} {'warps':>5} {'regs':>4} {'stack':>5} {'shared':>6}"
    lines = [f"{head}  loads; stores"]
    for row in rows:
        moved = "; ".join(
            " ".join(f"{n}x{width}" for width, n in widths.items())
            for widths in (row.loads, row.stores)
        )
        lines.append(
            f"{row.target:4} {row.name:44} {row.num_warps:5} "
            f"{row.registers:4} {row.stack_bytes:5} {row.shared_bytes:6}  {moved}"
        )
    return "\n".join(lines)


def floor_table(found: list[Floor]) -> str:
    """Columns for people; microseconds are of 8,192 rows."""
    columns = (
        "card",
        "V",
        "regs",
        "warps",
        "blocks",
        "instr./row",
        "issue us",
        "memory us",
        "share",
    )
    lines = [" ".join(f"{name:>10}" for name in columns)]
    for one in found:
        cells = [one.card, one.vocab, one.registers, one.num_warps, one.blocks]
        cells += [one.warp_instructions, f"{1e6 * one.issue_seconds:.0f}"]
        cells += [f"{1e6 * one.memory_seconds:.0f}", f"{one.share:.2f}"]
        lines.append(" ".join(f"{cell:>10}" for cell in cells) + f"  {one.missed}".rstrip())
    return "\n".join(lines)


def with_triton(version: str) -> int:
    """Run this script beside another Triton, in a folder of its own; the exit status."""
    folder = ROOT / "build" / f"triton-{version}"
    if not folder.exists():
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-warn-conflicts",
        ]
        # A constraints file of the environment would name the Triton that is installed already.
        subprocess.run(
            [*pip, "--target", str(folder), f"triton=={version}.*"],
            env={**os.environ, "PIP_CONSTRAINT": ""},
            check=True,
        )
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    arguments = [one for one in sys.argv[1:] if one not in ("--triton", version)]
    command = [sys.executable, __file__, *arguments, "--result", f"kernel_resources_{version}"]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON, write nothing")
    parser.add_argument("--targets", type=int, nargs="+", default=TARGETS)
    parser.add_argument(
        "--triton", metavar="VERSION", help="fetch this Triton, and compile with it"
    )
    parser.add_argument("--result", default="kernel_resources", help="what figures are called")
    options = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("error: TRITON_INTERPRET=1 makes kernels that cannot be compiled: unset it")
    if options.triton:
        sys.exit(with_triton(options.triton))
    rows, against = resources(tuple(options.targets)), list(held())
    figures = {
        "triton": triton.__version__,
        "kernels": [row._asdict() for row in rows],
        "floors": [one._asdict() for one in against],
    }
    if options.json:
        print(json.dumps(figures))
        return
    from record import save  # reads the machine's figures, which the JSON above does without

    print(table(rows), floor_table(against), sep="\n\n")
    save(options.result, figures)
    missed = [f"V={one.vocab} on an {one.card}: {one.missed}" for one in against if one.missed]
    sys.exit("\n".join(["error: instructions take too long", *missed]) if missed else 0)


if __name__ == "__main__":
    main()
