"""What cards can do that are not here: the least time that a case would take there.

A floor is the bytes of a case at the rate of a copy, or the operations of its products at that of a
matrix product, whichever takes longer. It is a prediction: no kernel ran there for it, and small
cases, whose floors are microseconds, are ruled by launches instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from kdcache.bench.report import Json
from kdcache.errors import one_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """Rates of a card: bytes a second of a copy, read and written; FLOP a second by dtype.

    Attributes:
        name: as people say it.
        copy: of a large tensor to another.
        products: of large square matrices.
        source: where the rates are from.
    """

    name: str
    copy: float
    products: Mapping[str, float]
    source: str


FP32 = 67e12
"""Of both cards' ordinary units, by NVIDIA's data sheets: torch multiplies float32 by them."""

CARDS = {
    card.name: card
    for card in (
        Card(
            name="H100",
            copy=3.02e12,
            products={"bf16": 785e12, "fp16": 785e12, "fp32": FP32},
            source="copy and bf16 measured (kernels_h100.json), fp16 taken to be as fast, fp32 "
            "from the data sheet",
        ),
        Card(
            name="H200",
            copy=4.3e12,
            products={"bf16": 788e12, "fp16": 788e12, "fp32": FP32},
            source="not measured: the figures of a review, fp32 from the data sheet",
        ),
    )
}


def card(name: str) -> Card:
    """The card of that name; ConfigError, with those that are known, if there is none."""
    return CARDS[one_of("card", name, CARDS)]


def predict(report: Json, names: Sequence[str]) -> None:
    """Add to every row of a report of `bench kernels` its floors on some cards, under `predicted`.

    What they are made of is added to the report under the same name.

    Raises:
        ConfigError: a card that is not known.
    """
    chosen = [card(name) for name in names]
    report["predicted"] = [asdict(one) for one in chosen]
    for row in report["rows"]:
        row["predicted"] = {one.name: floor(row, one) for one in chosen}


def floor(row: Json, card: Card) -> Json:
    """Seconds that a row's bytes and operations take at least on a card, and which rule."""
    rate = card.products[row["dtype"]]
    kinds = {"copy": row["bytes"] / card.copy, f"gemm {row['dtype']}": row["flops"] / rate}
    bound = max(kinds, key=kinds.__getitem__)
    return {"seconds": kinds[bound], "bound": bound}
