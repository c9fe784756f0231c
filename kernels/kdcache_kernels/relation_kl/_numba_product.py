"""Small matrix products within a Numba kernel, whose operands lie in the caches; rows as columns.

The compiler makes vectors of loops, but keeps no block of sums in registers; a block is stated here
in its own terms, vectors of eight floats, which it maps to what a processor has.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kdcache_kernels._numba import fast

__all__ = ["ROWS", "VECTOR", "add_product", "turn"]

ROWS = 4
VECTOR = 8  # floats


_FLOAT = ir.FloatType()
_ROW = ir.VectorType(_FLOAT, VECTOR)
_INT = ir.IntType(64)

_SIGNATURE = types.void(*(types.int64,) * 8)


def _writer(vectors: int) -> Any:
    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write(builder, vectors, *args)
        return context.get_dummy_value()

    return write


def _write(
    builder: Any, vectors: int,
    c: Any, c_row: Any, a: Any, a_row: Any, a_next: Any, b: Any, b_row: Any, k: Any,
) -> Any:  # fmt: skip
    def at(address: Any, step: Any, count: int) -> Any:
        return builder.add(address, builder.mul(step, _INT(count)))

    def place(address: Any, kind: Any) -> Any:
        return builder.inttoptr(address, kind.as_pointer())

    zero = ir.Constant(_ROW, None)
    places = [
        place(builder.add(at(c, c_row, r), _INT(4 * VECTOR * v)), _ROW)
        for r in range(ROWS)
        for v in range(vectors)
    ]
    start = [builder.load(p, align=4) for p in places]
    before, loop, after = (builder.append_basic_block(name) for name in ("", "sum", "summed"))
    builder.branch(before)
    builder.position_at_end(before)
    builder.branch(loop)
    builder.position_at_end(loop)
    step, sums = builder.phi(_INT), [builder.phi(_ROW) for _ in places]
    step.add_incoming(_INT(0), before)
    row = builder.add(b, builder.mul(step, b_row))
    lines = [
        builder.load(place(builder.add(row, _INT(4 * VECTOR * v)), _ROW), align=4)
        for v in range(vectors)
    ]
    column = builder.add(a, builder.mul(step, a_next))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), None)
    done = []
    for r in range(ROWS):
        x = builder.load(place(at(column, a_row, r), _FLOAT), align=4)
        every = builder.shuffle_vector(
            builder.insert_element(zero, x, ir.IntType(32)(0)), zero, lanes
        )
        for v in range(vectors):
            total = sums[r * vectors + v]
            product = builder.fmul(every, lines[v], flags=("contract",))
            done.append(builder.fadd(product, total, flags=("contract",)))
    for total, first, new in zip(sums, start, done, strict=True):
        total.add_incoming(first, before)
        total.add_incoming(new, loop)
    following = builder.add(step, _INT(1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, k), loop, after)
    builder.position_at_end(after)
    for p, new in zip(places, done, strict=True):
        builder.store(new, p, align=4)


def _wide(
    typing: Any, c: Any, c_row: Any, a: Any, a_row: Any, a_next: Any, b: Any, b_row: Any, k: Any
) -> Any:
    """As `add_product`, for four rows and two vectors of columns, whose sums stay in registers."""
    return _SIGNATURE, _writer(2)


def _slim(
    typing: Any, c: Any, c_row: Any, a: Any, a_row: Any, a_next: Any, b: Any, b_row: Any, k: Any
) -> Any:
    """The same for one vector of columns."""
    return _SIGNATURE, _writer(1)


def _turn(typing: Any, at: Any, stride: Any, out: Any, out_stride: Any) -> Any:
    """Write eight rows of eight floats as columns."""

    def make(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        at, stride, out, out_stride = args

        def place(start: Any, step: Any, i: int) -> Any:
            address = builder.add(start, builder.mul(step, _INT(i)))
            return builder.inttoptr(address, _ROW.as_pointer())

        rows = [builder.load(place(at, stride, i), align=4) for i in range(VECTOR)]
        for apart in (1, 2, 4):  # of two rows, the squares of so many that lie crosswise
            for i in range(VECTOR):
                if not i & apart:
                    pair = rows[i], rows[i + apart]
                    rows[i] = _picked(builder, pair, apart, 0)
                    rows[i + apart] = _picked(builder, pair, apart, apart)
        for i, row in enumerate(rows):
            builder.store(row, place(out, out_stride, i), align=4)
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 4), make


def _picked(builder: Any, pair: tuple[Any, Any], apart: int, first: int) -> Any:
    """From both rows the elements at places with `first` in their bit `apart`, by turns."""
    lanes = [(lane & ~apart) + first + (VECTOR if lane & apart else 0) for lane in range(VECTOR)]
    return builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), VECTOR), lanes))


# Of any type to a checker: what is called has no `typing`, which Numba gives.
_add_wide: Any = intrinsic(_wide)
_add_slim: Any = intrinsic(_slim)
turn: Any = intrinsic(_turn)


@fast()
def add_product(
    c: int, c_row: int, rows: int, columns: int,
    a: int, a_row: int, a_next: int,
    b: int, b_row: int, k: int,
) -> None:  # fmt: skip
    """Add to C [rows, columns] the product of A [rows, k] and B [k, columns], all float32.

    `c`, `a` and `b` are addresses; the others count bytes: from row to row, and in A from one of
    the k to the next. Rows come in fours and columns in eights.
    """
    for r in range(0, rows, ROWS):
        for v in range(0, columns - VECTOR, 2 * VECTOR):
            _add_wide(
                c + r * c_row + 4 * v, c_row, a + r * a_row, a_row, a_next, b + 4 * v, b_row, k
            )
        if columns // VECTOR % 2:
            v = columns - VECTOR
            _add_slim(
                c + r * c_row + 4 * v, c_row, a + r * a_row, a_row, a_next, b + 4 * v, b_row, k
            )
