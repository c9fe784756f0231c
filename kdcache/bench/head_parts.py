"""What a head that is fused with its loss moves and multiplies, part by part, from shapes alone.

Operations are those of matrix products; the parts without any are passes over a chunk of logits.
Bytes are those that a part reads and writes once, as if no cache kept them for the next: what a row
kernel reads a second time comes from the caches and is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32 = 4
SOFT_LABEL = 8
"""Bytes of a stored one: its id and its log-probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Bytes read and written, and floating-point operations of the matrix product."""

    bytes: int
    flops: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShape:
    """Sizes of a call of `linear_topk_kl` or `linear_kl`.

    Attributes:
        rows: N.
        classes: V, without those of padding.
        width: H of the student's hidden states.
        item: bytes of an element of what is multiplied, and so of the logits.
        chunk: rows whose logits exist at once.
        teacher_width: H of the teacher's hidden states; 0 where its soft labels are stored.
        k: soft labels a row, where they are.
        hidden, weight, bias: whether their gradients are made, the last two in float32.
    """

    rows: int
    classes: int
    width: int
    item: int
    chunk: int
    teacher_width: int = 0
    k: int = 0
    hidden: bool = True
    weight: bool = True
    bias: bool = True

    @property
    def chunks(self) -> int:
        """How often the head is read, and its gradient added to."""
        return -(-self.rows // max(self.chunk, 1))

    @property
    def logits(self) -> int:
        """Elements of the logits, which never exist together."""
        return self.rows * self.classes


def head_parts(head: HeadShape) -> dict[str, Part]:
    """The parts of a call, in their order."""
    n, v, item, logits = head.rows, head.classes, head.item, head.logits
    product = 2 * logits * head.width
    states, matrix, chunk = n * head.width, v * head.width, item * logits
    heads = item * head.chunks * matrix
    parts = {"logits": Part(bytes=item * states + heads + chunk, flops=product)}
    theirs = SOFT_LABEL * n * head.k
    if head.teacher_width:
        theirs = FP32 * logits  # the teacher's logits, whatever the student's are
        read = item * head.teacher_width * (n + head.chunks * v)
        flops = 2 * logits * head.teacher_width
        parts["teacher's logits"] = Part(bytes=read + theirs, flops=flops)
    written = chunk if head.hidden or head.weight or head.bias else 0
    parts["row kernel"] = Part(bytes=chunk + theirs + written)
    if head.hidden:
        parts["dX"] = Part(bytes=chunk + heads + item * states, flops=product)
    if head.weight:
        sums = (2 * head.chunks - 1) * FP32 * matrix  # the first chunk's is not added to anything
        parts["dW"] = Part(bytes=chunk + item * states + sums, flops=product)
    if head.bias:
        parts["db"] = Part(bytes=chunk + (2 * head.chunks - 1) * FP32 * v)
    return parts


def head_flops(head: HeadShape) -> int:
    """Operations of all matrix products of a call."""
    return sum(part.flops for part in head_parts(head).values())


def least_bytes(head: HeadShape) -> int:
    """One read of every input and one write of every gradient, all of `item` bytes an element."""
    own = head.item * head.width
    inputs = own * (head.rows + head.classes) + SOFT_LABEL * head.rows * head.k
    inputs += head.item * head.teacher_width * (head.rows + head.classes)
    return inputs + own * (head.hidden * head.rows + head.weight * head.classes)
