"""A row of topk_kl in Triton: the support flagged, the rest summed, the gradient stored.

Letters as in `reference`: V classes, K ids a row; p teacher, q student; T temperature; the rest is
what is outside the support. Everything is float32. Logits are taken relative to one near the
largest of the row, or the normaliser of large ones would lose its digits.
"""

from kdcache_kernels._triton import (
    at_temperature_1,
    exponentials,
    jit,
    load_tile,
    store_tile,
    tl,
)


@jit
def flag_support(
    flags_ptr: tl.tensor,
    j: tl.tensor,
    inside: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    WORDS: tl.constexpr,
) -> None:
    """Write a bit an element, set in the support and outside of the row; all warps see it."""
    z = tl.arange(0, WORDS)
    past = (shift + V) >> 5
    outside = tl.where(z == 0, (1 << shift) - 1, 0)
    outside |= tl.where(z == past, -1 << ((shift + V) & 31), 0) | tl.where(z > past, -1, 0)
    tl.store(flags_ptr + z, outside.to(tl.int32))
    tl.debug_barrier()
    o = j + shift
    tl.atomic_or(flags_ptr + (o >> 5), 1 << (o & 31), mask=inside, sem="relaxed", scope="cta")
    tl.debug_barrier()


@jit
def load_packed(
    x_ptr: tl.tensor,
    i: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    ALIGN: tl.constexpr,
    EVICT: tl.constexpr,
    BLOCK: tl.constexpr,
    INNER: tl.constexpr = False,
) -> tl.tensor:
    """Tile `i` of a row as `widened` takes it: two elements of 16 bits in a word if they can be.

    What is outside of the row is undefined; of an `INNER` tile nothing is.
    Apart they would take two instructions each to become float32, and a register each till then.
    """
    if x_ptr.dtype.element_ty.primitive_bitwidth == 16 and ALIGN > 1:
        o = i * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
        words_ptr = x_ptr.to(tl.pointer_type(tl.int32))
        if INNER:
            return tl.load(words_ptr + o, eviction_policy=EVICT)
        past = (shift + V + ALIGN - 1) // ALIGN * (ALIGN // 2)
        return tl.load(words_ptr + o, mask=o < past, other=0, eviction_policy=EVICT)
    else:
        return load_tile(x_ptr, i * BLOCK + tl.arange(0, BLOCK), shift, V, ALIGN, EVICT)


@jit
def widened(tile: tl.tensor, x_ptr: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """The tile [BLOCK] in float32."""
    if tile.dtype != tl.int32:
        return tile.to(tl.float32)
    elif x_ptr.dtype.element_ty == tl.bfloat16:
        low = (tile << 16).to(tl.float32, bitcast=True)
        high = (tile & -65536).to(tl.float32, bitcast=True)
        return tl.reshape(tl.join(low, high), [BLOCK])
    else:
        low = tile.to(tl.int16).to(tl.float16, bitcast=True)
        high = (tile >> 16).to(tl.int16).to(tl.float16, bitcast=True)
        return tl.reshape(tl.join(low, high), [BLOCK]).to(tl.float32)


@jit
def load_flags(
    flags_ptr: tl.tensor, first: tl.tensor, shift: tl.tensor, V: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """The flags of a tile, eight in a byte."""
    # Not a mask: of bytes that are known to follow each other a thread would load two, and pass
    # one on through shared memory, where all warps meet.
    g = tl.minimum(first // 8 + tl.arange(0, BLOCK // 8), (shift + V + 7) // 8)
    return tl.load(flags_ptr.to(tl.pointer_type(tl.int8)) + g)


@jit
def drop_flagged(x: tl.tensor, flags: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """The tile [BLOCK] of float32, with -inf where its flag is set."""
    flagged = (flags.to(tl.int32)[:, None] & (1 << tl.arange(0, 8)[None, :])) != 0
    x = tl.reshape(x, [BLOCK // 8, 8])
    return tl.reshape(tl.where(flagged, float("-inf"), x), [BLOCK])


@jit
def rest_of(
    tile: tl.tensor,
    flags_ptr: tl.tensor,
    first: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The tile of float32 from element `first` on, with -inf where it is none of the rest."""
    return drop_flagged(tile, load_flags(flags_ptr, first, shift, V, BLOCK), BLOCK)


@jit
def add_exponentials(
    sums: tl.tensor,
    sums_1: tl.tensor,
    x: tl.tensor,
    base: tl.tensor,
    T: tl.tensor,
    POWER: tl.constexpr,
) -> tl.tensor:
    """The sums with exp((x - base) / T) and exp(x - base) added, lane by lane."""
    e = exponentials(x - base, T)
    sums += e
    if POWER != 1:
        sums_1 += at_temperature_1(e, x - base, POWER)
    return sums, sums_1


@jit
def masses(
    x_ptr: tl.tensor,
    flags_ptr: tl.tensor,
    first: tl.tensor,
    base: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    T: tl.tensor,
    inner: tl.tensor,
    POWER: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
) -> tl.tensor:
    """Sums over the rest of exp((x - base) / T) and of exp(x - base).

    `first` is the rest in tile 0. The sums are added up lane by lane and reduced once: a reduction
    costs as much as a tile. Each tile is on its way while the one before it is summed.
    """
    sums = exponentials(first - base, T)
    sums_1 = at_temperature_1(sums, first - base, POWER)
    tile = load_packed(x_ptr, 1, shift, V, ALIGN, "evict_last", BLOCK)
    flags = load_flags(flags_ptr, BLOCK, shift, V, BLOCK)
    for i in range(1, inner):
        next_tile = load_packed(x_ptr, i + 1, shift, V, ALIGN, "evict_last", BLOCK)
        next_flags = load_flags(flags_ptr, (i + 1) * BLOCK, shift, V, BLOCK)
        x = drop_flagged(widened(tile, x_ptr, BLOCK), flags, BLOCK)
        sums, sums_1 = add_exponentials(sums, sums_1, x, base, T, POWER)
        tile = next_tile
        flags = next_flags
    for i in tl.static_range(LAST):
        if i > 0:
            tile = load_packed(x_ptr, inner + i, shift, V, ALIGN, "evict_last", BLOCK)
            flags = load_flags(flags_ptr, (inner + i) * BLOCK, shift, V, BLOCK)
        x = drop_flagged(widened(tile, x_ptr, BLOCK), flags, BLOCK)
        sums, sums_1 = add_exponentials(sums, sums_1, x, base, T, POWER)
    mass = tl.sum(sums, 0)
    mass_1 = mass
    if POWER != 1:
        mass_1 = tl.sum(sums_1, 0)
    return mass, mass_1


@jit
def largest(
    x_ptr: tl.tensor,
    flags_ptr: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    tiles: tl.tensor,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest logit of the rest."""
    tops = tl.full([BLOCK], float("-inf"), tl.float32)
    for i in range(tiles):
        tile = load_packed(x_ptr, i, shift, V, ALIGN, "evict_last", BLOCK)
        x = widened(tile, x_ptr, BLOCK)
        tops = tl.maximum(tops, rest_of(x, flags_ptr, i * BLOCK, shift, V, BLOCK))
    return tl.max(tops, 0)


@jit
def store_gradient(
    x_ptr: tl.tensor,
    out_ptr: tl.tensor,
    base: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    shift: tl.tensor,
    V: tl.tensor,
    T: tl.tensor,
    inner: tl.tensor,
    POWER: tl.constexpr,
    ALIGN: tl.constexpr,
    SAME: tl.constexpr,
    BLOCK: tl.constexpr,
    LAST: tl.constexpr,
) -> None:
    """Write the gradient outside the support, backwards: what was read last is still in cache.

    As in `masses` each tile is on its way before it is needed.
    """
    o = tl.arange(0, BLOCK)
    tile = load_packed(x_ptr, inner - 1, shift, V, ALIGN, "evict_first", BLOCK)
    for i in tl.static_range(LAST):
        v = (inner + i) * BLOCK + o
        x = load_packed(x_ptr, inner + i, shift, V, ALIGN, "evict_first", BLOCK)
        gradient = dense_gradient(widened(x, x_ptr, BLOCK) - base, T, a, b, POWER)
        store_tile(out_ptr, v, gradient, shift, V, ALIGN, SAME)
    for n in range(1, inner):
        v = (inner - n) * BLOCK + o
        next_tile = load_packed(x_ptr, inner - n - 1, shift, V, ALIGN, "evict_first", BLOCK, True)
        gradient = dense_gradient(widened(tile, x_ptr, BLOCK) - base, T, a, b, POWER)
        tl.store(out_ptr + v, gradient.to(out_ptr.dtype.element_ty))
        tile = next_tile
    gradient = dense_gradient(widened(tile, x_ptr, BLOCK) - base, T, a, b, POWER)
    store_tile(out_ptr, o, gradient, shift, V, ALIGN, SAME)


@jit
def dense_gradient(
    d: tl.tensor, T: tl.tensor, a: tl.tensor, b: tl.tensor, POWER: tl.constexpr
) -> tl.tensor:
    """a exp(d / T) + b exp(d): the gradient outside the support."""
    e = exponentials(d, T)
    if POWER == 1:
        g = e * (a + b)
    else:
        g = e * a + at_temperature_1(e, d, POWER) * b
    return g
