"""The support of a row of topk_kl in Triton, and the scalars of the row that follow from it.

Letters as in `reference`: K ids a row; p teacher, q student; T temperature; the rest is what is
outside the support. Everything is float32.
"""

from kdcache_kernels._triton import exponentials, finite_or_zero, jit, js_terms, log1p, tl

FORWARD = tl.constexpr(0)
REVERSE = tl.constexpr(1)


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
        top = finite_or_zero(tl.max(lp, 0))
        support = top + tl.log(tl.sum(tl.exp(lp - top), 0))
        log_total, share = total_and_share(support, rest)
        nothing = tl.maximum(support, rest) == float("-inf")
        lp = lp - tl.where(nothing, 0.0, log_total)  # a total of 1 leaves no soft loss
        rest = tl.where(rest == float("-inf"), rest, share)
    if not BUCKET:
        rest = tl.full((), float("-inf"), tl.float32)
    return lp, rest


@jit
def total_and_share(support: tl.tensor, rest: tl.tensor) -> tl.tensor:
    """Log of the sum of two masses from their logs, and log of the share that the rest has.

    The share comes from the ratio of both: the difference of two logarithms would lose the digits
    of a share near 1, and so would 1 plus a small ratio.
    """
    ratio = support - rest
    beside = log1p(tl.exp(-tl.abs(ratio)))
    return tl.maximum(support, rest) + beside, -tl.maximum(ratio, 0.0) - beside


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
            pull, terms = js_terms(q, p, lp - lq)
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
    """Log of the whole sum of exp(x / T), less `base` / T; the log of the rest's share; `base`.

    The rest comes as a sum of its own: 1 - sum(q) would cancel for a confident student.
    """
    base = finite_or_zero(tl.maximum(top, rest_top))
    support = (top - base) / T + tl.log(mass)
    rest = (rest_top - base) / T + tl.log(rest_mass)
    lse, share = total_and_share(support, rest)
    return lse, share, base


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
