"""What the Triton kernels of topk_kl share: the support, the scalars of a row, its gradient.

Letters as in `reference`: V classes, K ids a row; p teacher, q student; T temperature; the rest is
what is outside the support. Everything is float32. Logits are taken relative to the largest of the
row, or the normaliser of large ones would lose its digits.
"""

from kdcache_kernels._triton import at_temperature_1, exponentials, finite_or_zero, jit, tl

LOG_2 = tl.constexpr(0.6931471805599453)
FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)


@jit
def left_out(
    ids_ptr: tl.tensor,
    K: tl.constexpr,
    V: tl.tensor,
    shift: tl.tensor,
    first: tl.tensor,
    W: tl.constexpr,
    UNSIGNED: tl.constexpr,
) -> tl.tensor:
    """Flags of the elements of a tile that are in the support or outside the row, [W, 1].

    Bit b of word w stands for element `first + 32 w + b`. 32 elements are compared at once, so the
    K comparisons hide behind the load of the tile.
    """
    start = first + tl.arange(0, W)[:, None] * 32
    before = tl.minimum(tl.maximum(shift - start, 0), 31)  # shift < 32: never a whole word
    inside = tl.minimum(tl.maximum(shift + V - start, 0), 32)
    words = (1 << before) - 1
    words |= tl.where(inside == 32, 0, -1 << (inside & 31))
    for c in tl.range(0, K, loop_unroll_factor=8):
        j = tl.load(ids_ptr + c).to(tl.int32)
        if UNSIGNED:
            j = j & 0xFFFF
        o = j + shift
        words |= tl.where((o & -32) == start, 1 << (o & 31), 0)
    return words


@jit
def drop_flagged(x: tl.tensor, words: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """The tile [BLOCK] in float32, with -inf where its flag is set."""
    bit = 1 << tl.arange(0, 32)[None, :]
    x = tl.reshape(x.to(tl.float32), [BLOCK // 32, 32])
    return tl.reshape(tl.where((words & bit) != 0, float("-inf"), x), [BLOCK])


@jit
def load_support(
    x_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    logprobs_ptr: tl.tensor,
    K: tl.constexpr,
    V: tl.tensor,
    BLOCK_K: tl.constexpr,
    UNSIGNED: tl.constexpr,
) -> tl.tensor:
    """Ids [BLOCK_K], which of them are classes, their logits and log p, and whether all are valid.

    Pads have logits and log-probabilities of -inf.
    """
    c = tl.arange(0, BLOCK_K)
    wide = tl.load(ids_ptr + c, mask=c < K, other=-1)
    if UNSIGNED:
        j = wide.to(tl.int32) & 0xFFFF
        pad = (c >= K) | ((j == 65535) & (V < 65536))
        inside = (c < K) & (j < V)
    else:
        pad = wide == -1
        inside = (wide >= 0) & (wide < V)
        j = wide.to(tl.int32)
    bad = tl.max(tl.where(inside | pad, 0, 1), 0)
    xs = tl.load(x_ptr + j, mask=inside, other=float("-inf")).to(tl.float32)
    lp = tl.load(logprobs_ptr + c, mask=inside, other=float("-inf")).to(tl.float32)
    return j, inside, xs, lp, bad


@jit
def teacher_classes(
    lp: tl.tensor, rest: tl.tensor, T: tl.tensor, BUCKET: tl.constexpr, DIVIDE: tl.constexpr
) -> tl.tensor:
    """Log-probabilities at this temperature, of the support [K] and of the tail."""
    lp = lp / T
    if DIVIDE:
        top = finite_or_zero(tl.maximum(tl.max(lp, 0), rest))
        log_total = finite_or_zero(top + tl.log(tl.sum(tl.exp(lp - top), 0) + tl.exp(rest - top)))
        lp = lp - log_total  # no teacher at all: a total of 1 leaves no soft loss
        rest = rest - log_total
    if not BUCKET:
        rest = tl.full((), float("-inf"), tl.float32)
    return lp, rest


@jit
def log_add(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """log(exp(a) + exp(b))."""
    top = finite_or_zero(tl.maximum(a, b))
    return top + tl.log(tl.exp(a - top) + tl.exp(b - top))


@jit
def divergence(lp: tl.tensor, lq: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """Terms of D, and q dD/dq up to a multiple of q; 0 log 0 = 0."""
    p = tl.exp(lp)
    q = tl.exp(lq)
    if KIND == FORWARD:
        terms = tl.where(p == 0, 0.0, p * (lp - lq))
        pull = -p
    else:
        if KIND == REVERSE:
            pull = tl.where(q == 0, 0.0, q * (lq - lp))
            terms = pull
        else:
            lm = log_add(lp, lq) - LOG_2
            pull = 0.5 * tl.where(q == 0, 0.0, q * (lq - lm))
            terms = 0.5 * tl.where(p == 0, 0.0, p * (lp - lm)) + pull
    return terms, pull


@jit
def support_mass(xs: tl.tensor, T: tl.tensor) -> tl.tensor:
    """The largest of the support's logits, and the sum of exp((x - largest) / T)."""
    top = tl.max(xs, 0)
    return top, tl.sum(exponentials(xs - finite_or_zero(top), T), 0)


@jit
def normaliser(
    top: tl.tensor, mass: tl.tensor, rest_top: tl.tensor, rest_mass: tl.tensor, T: tl.tensor
) -> tl.tensor:
    """Log of the whole sum of exp(x / T), and that of the rest, both less `base` / T.

    The rest comes as a sum of its own: 1 - sum(q) would cancel for a confident student.
    """
    base = finite_or_zero(tl.maximum(top, rest_top))
    rest = (rest_top - base) / T + tl.log(rest_mass)
    return tl.log(mass * exponentials(top - base, T) + tl.exp(rest)), rest, base


@jit
def soft_loss(
    lq: tl.tensor,
    lp: tl.tensor,
    lq_tail: tl.tensor,
    lp_tail: tl.tensor,
    T: tl.tensor,
    KIND: tl.constexpr,
) -> tl.tensor:
    """`T^2 D`, and dD/dz of the support [K] and of the tail, z = x / T."""
    terms, pull = divergence(lp, lq, KIND)
    term_tail, pull_tail = divergence(lp_tail, lq_tail, KIND)
    total = tl.sum(pull, 0) + pull_tail
    loss = T * T * (tl.sum(terms, 0) + term_tail)
    return loss, pull - tl.exp(lq) * total, pull_tail - tl.exp(lq_tail) * total


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


@jit
def held_gradient(e: tl.tensor, a: tl.tensor, b: tl.tensor, POWER: tl.constexpr) -> tl.tensor:
    """The same from e = exp(d / T) alone, T one of 1, 2 and 4: no second tile is held."""
    tl.static_assert(POWER != 0)
    if POWER == 1:
        g = e * (a + b)
    else:
        if POWER == 2:
            g = e * (a + e * b)
        else:
            square = e * e
            g = e * a + square * square * b
    return g
