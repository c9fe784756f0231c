"""What docs/format.md says is enough: a reader made of its code alone decodes what kdcache does."""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import kdcache
from kdcache.manifest import FORMAT, FORMATS
from kdcache.signals import FEATURES, SIGNALS, LayerVectors, ModelSizes, Tap, parse, with_artifacts
from kdcache.signals.codecs.vocabulary import by_frequency
from kdcache.store import Cache, open_cache
from kdcache.tasks import STORED, TASKS, Subset
from tests.activations import activations
from tests.archives import unpack
from tests.pages import DOCS, blocks, prose, run_python
from tests.test_codecs import outputs_of, rows_of

PAGE = DOCS / "format.md"
MADE = ["cache", "masked_cache", "every_token", "causal_cache", "named"]


@pytest.fixture(scope="module")
def page() -> SimpleNamespace:
    """The page's reader."""
    return SimpleNamespace(**run_python(blocks(PAGE, "python")))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches of the first two formats: the second with every codec."""
    here = Path(__file__)
    folder = unpack(here.with_name("format2.zip"), tmp_path_factory.mktemp("formats"))
    with zipfile.ZipFile(here.with_name("format1.zip")) as made:
        made.extractall(folder / "first")
    return folder


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory, classifier: Path, corpus: Path) -> Cache:
    """A cache of every kind of vector, under names of its own."""
    signals = ["soft=logits:topk-small,k=2", "late=hidden:layers=4,dtype=fp16"]
    for kind, vectors in FEATURES.items():
        layers = "layers=1-3," if issubclass(vectors, LayerVectors) else ""
        signals.append(f"my-{kind}={kind}:{layers}dtype=int4,group=8")
    signals.append("my-attention=attention:layers=1-3,dtype=int4,group=8")
    return kdcache.build(
        corpus,
        teacher=classifier,
        task="text-classification",
        out=tmp_path_factory.mktemp("named") / "cache",
        signals=signals,
        limit=12,
        part_tokens=256,
    )


@pytest.fixture(scope="module")
def every_token(
    tmp_path_factory: pytest.TempPathFactory, masked_lm: Path, prose_file: Path
) -> Cache:
    """What a masked language model says of every token of masked texts."""
    return kdcache.build(
        prose_file,
        teacher=masked_lm,
        task="masked-lm-all",
        out=tmp_path_factory.mktemp("every") / "cache",
        signals=["logits:topk,k=8,fraction=0.5", "hidden:layers=2,positions=masked"],
        limit=12,
        max_length=48,
        part_tokens=512,
    )


def roots(old: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Every cache, of every format."""
    yield old / "first" / "cache"
    yield from sorted(p.parent.parent.parent for p in old.glob("*/commits/plan/zarr.json"))
    for name in MADE:
        yield request.getfixturevalue(name).path


def near(found: Any, wanted: torch.Tensor, what: str) -> None:
    assert np.shape(found) == tuple(wanted.shape), what
    exact = not wanted.is_floating_point()
    np.testing.assert_allclose(found, wanted, rtol=0 if exact else 1e-5, atol=2e-5, err_msg=what)


def test_the_page_knows_numpy_and_zarr_only() -> None:
    code = [ast.parse(block.text) for block in blocks(PAGE, "python")]
    nodes = [node for tree in code for node in ast.walk(tree)]
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    assert set(names) == {"hashlib", "json", "math", "pathlib", "collections", "numpy", "zarr"}


@pytest.mark.slow
def test_every_cache_of_every_format_is_decoded_by_the_page(
    page: Any, old: Path, request: pytest.FixtureRequest
) -> None:
    codecs, formats = set(), set()
    for root in roots(old, request):
        for teacher in (None, *open_cache(root).teachers):
            cache, store = open_cache(root, teacher=teacher), page.open_store(root, teacher)
            done = set(cache.committed)
            docs = [
                d for d in page.documents(store.plan) if d // cache.plan.rows["document"] in done
            ]
            docs = docs[::-3] + docs[1:3]  # in any order, and some twice
            assert page.documents(store.plan) == cache.plan.docs.tolist()
            formats.add(store.manifest["format"])
            for name, signal in cache.signals.items():
                codecs.add(signal.codec)
                check(page.columns(store, name, docs), cache.columns(np.array(docs), name), root)
    assert formats == {1, 2, 3}
    assert codecs >= page.CODECS.keys() == SIGNALS["logits"].keys()


def check(found: dict[str, Any], wanted: Mapping[str, torch.Tensor], what: object) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        near(found[name], value, f"{what} {name}")


def test_rows_of_a_fraction_are_those_of_the_page(page: Any, masked_cache: Cache) -> None:
    plan = masked_cache.plan
    store = page.open_store(masked_cache.path)
    docs = plan.docs.tolist()
    for space in ("token", "selected"):
        for fraction in (0.003, 0.2, 1 / 3, 0.999):
            subset = Subset(space, fraction)
            starts, counts = plan.spans(plan.docs, subset)
            size = plan.part_rows(subset)
            rows = page.rows_of(store, docs, STORED[space], fraction, size)
            pairs = zip(starts.tolist(), counts.tolist(), strict=True)
            assert rows.tolist() == [row for a, n in pairs for row in range(a, a + n)]
            for doc, start, count in zip(docs[:20], starts, counts, strict=False):
                span = page.span(store.plan, doc, STORED[space])
                first, which = page.kept(store.manifest, doc, *span, STORED[space], fraction, size)
                assert which == plan.sampled_rows(np.array([doc]), subset).tolist()
                assert (first, len(which)) == (start, count)


LOGITS = ["dense", "dense,dtype=fp16", "topk,k=7,draws=5", "topk,k=1", "sampled,n=9"]
LOGITS += ["topk-small,k=7,draws=5", "topk-small,k=1", "topk-small,k=7,levels=20"]


@pytest.mark.parametrize("vocabulary", [9, 600, 70_000])
@pytest.mark.parametrize("text", LOGITS)
def test_rows_of_any_shape_are_decoded_by_the_page(page: Any, text: str, vocabulary: int) -> None:
    """One id with all the probability, hardly a difference between ids, and all in between."""
    shape = ModelSizes(outputs=vocabulary, hidden=8, layers=1)
    order = by_frequency(np.random.default_rng(1).integers(0, 99, vocabulary), vocabulary)
    signal: Any = parse(f"logits:{text}")
    signal = with_artifacts({"it": signal}, shape, lambda name: order.to_bytes())["it"]
    logits = torch.cat([rows_of(6, vocabulary) * scale for scale in (1e-3, 1.0, 4.0, 30.0)])
    raw = signal.encode(outputs_of(logits))
    specs = {s.name: s for s in signal.arrays(TASKS["masked-lm"], shape)}
    stored = {name: raw[name].numpy() for name in specs}
    attributes = {name: spec.attributes for name, spec in specs.items()}
    given = stored, attributes, signal.to_json(), vocabulary, lambda name: order.to_bytes()
    check(page.CODECS[signal.codec](*given), signal.columns(raw, shape), text)


@pytest.mark.parametrize("group", [",group=8", ""])
@pytest.mark.parametrize("dtype", ["int8", "int4", "fp8", "bf16", "fp16", "fp32"])
def test_rows_of_a_layer_are_decoded_by_the_page(page: Any, dtype: str, group: str) -> None:
    signal: Any = parse(f"hidden:layers=0,dtype={dtype}{group if dtype.startswith('int') else ''}")
    rows = torch.randn(40, 1, 32, generator=torch.Generator().manual_seed(0))
    rows[:20, :, ::7] *= 30
    rows[30], rows[31] = 0, 1e-6
    outputs = activations(logits=rows, hidden=[rows], mask=torch.ones(40, 1, dtype=torch.bool))
    raw = signal.encode(outputs)
    specs = signal.arrays(TASKS["masked-lm"], ModelSizes(outputs=9, hidden=32, layers=0))
    short = {spec.name.rpartition("/")[2]: spec for spec in specs}
    stored = {name: raw[spec.name].numpy() for name, spec in short.items()}
    attributes = {name: spec.attributes for name, spec in short.items()}
    found = page.dense_rows(stored, attributes, signal.dtype)
    wanted = signal.decode(raw, Tap("hidden", 0)).dense()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=0)


def test_codes_alone_are_off_by_what_the_page_says(page: Any) -> None:
    """A row's common error is at most half a step of the table, and the shift takes it out."""
    for text, half in (
        ("topk,k=1", lambda d: np.sqrt(d) / 64 + 1e-4),
        ("topk-small,k=1", lambda d: 0.0092 * np.exp(0.3 * d)),
    ):
        signal: Any = parse(f"logits:{text}")
        order = by_frequency(np.zeros(0, np.int64), 4000)
        shape = ModelSizes(outputs=4000, hidden=8, layers=1)
        signal = with_artifacts({"it": signal}, shape, lambda name, order=order: order.to_bytes())[
            "it"
        ]
        logits = torch.zeros(900, 4000)
        logits[:, 5] = torch.linspace(0.01, 9, 900)  # probabilities from e^-8 up to two thirds
        raw, exact = (
            signal.encode(outputs_of(logits)),
            logits.double().log_softmax(-1)[:, 5].numpy(),
        )
        books = {
            s.name: s.attributes.get("codebook") for s in signal.arrays(TASKS["masked-lm"], shape)
        }
        codes = raw["logprobs"]
        if "floor" in raw:
            codes = raw["floor"][:, None] - codes
        coarse = np.array(books["logprobs"])[codes.numpy()][:, 0]
        off = np.abs(coarse - exact)
        assert (off <= half(-exact)).all()
        assert off.max() > 0.8 * half(-exact).max()
        decoded = signal.soft(raw, 4000).logprobs[:, 0].double().numpy()
        rounding = 1e-5 if text == "topk,k=1" else 2e-3  # of the tail, in float32 or float16
        assert np.abs(decoded - exact).max() < rounding


@pytest.mark.slow
def test_identities_and_commits_are_those_of_the_page(
    page: Any, old: Path, request: pytest.FixtureRequest
) -> None:
    for root in roots(old, request):
        store, cache = page.open_store(root), open_cache(root)
        assert page.plan_sha256(store.root, store.manifest) == store.manifest["plan"]["sha256"]
        assert page.check(root) == cache.committed
        for name in cache.files:
            assert page.file_of(store)(name) == cache.file(name)


def test_the_page_checks_what_it_reads(page: Any, old: Path, tmp_path: Path) -> None:
    root = old / "labels"
    shard = root / "logits" / "ids" / "c" / "1" / "0"
    whole = shard.read_bytes()
    for at in (-1, -6, -22):  # the index's crc32c, the index, the only chunk's crc32c
        data = bytearray(whole)
        data[at] ^= 1
        shard.write_bytes(data)
        with pytest.raises((AssertionError, ValueError)):
            page.check(root)
    shard.write_bytes(whole)
    assert page.check(root) == [0, 1, 2]


def told() -> set[str]:
    """What stands in backticks on the page outside its code."""
    return set(re.findall(r"`([^`\n]+)`", prose(PAGE)))


@pytest.mark.slow
def test_every_array_and_every_attribute_and_dimension_is_on_the_page(
    old: Path, request: pytest.FixtureRequest
) -> None:
    known = told()
    words = {word for span in known for word in re.split(r"[/]", span)}
    for root in roots(old, request):
        for path, node in zarr.open_group(root, mode="r").members(max_depth=None):
            plain = re.sub("^teachers/[^/]+/?", "teachers/", path).rstrip("/")
            if not plain.startswith(("files/", "commits/")):
                last = re.sub("^L[0-9]+$", "L{i}", plain.rpartition("/")[2])
                assert last in words | set(open_cache(root).signals), path
            assert set(node.attrs) <= {"kdcache", "sha256", *known}, path
            for name in node.metadata.to_dict().get("dimension_names") or []:
                plain = re.sub("^byte_of_[^k].*[.].*|^byte_of_vocabulary$", "byte_of_{name}", name)
                assert re.sub("_fraction_.*", "", plain) in known, f"{path}: {name}"


def test_every_field_of_every_record_is_on_the_page(
    old: Path, request: pytest.FixtureRequest
) -> None:
    words = {word for span in told() for word in re.split(r"[. ]", span)}
    for root in roots(old, request):
        group = zarr.open_group(root, mode="r")
        sealed = [group, *(node for _, node in group["commits"].groups())]
        sealed += [group["complete"]] if "complete" in group else []
        for node in sealed:
            for name in field_names(node.attrs["kdcache"]):
                assert name in words, f"{node}: {name}"


FREE = {"objects", "fidelity", "software", "rows", "signals", "teachers", "manifest"}
"""Tables whose keys are names of things, or that are told of elsewhere."""


def field_names(record: dict[str, Any]) -> Iterator[str]:
    for name, value in record.items():
        yield name
        inner = value if isinstance(value, list) else [value]
        if name not in FREE and not (name == "config" and "task" not in value):
            for table in inner:
                yield from field_names(table) if isinstance(table, dict) else ()


def test_the_formats_of_the_page_are_those_that_are_read() -> None:
    *older, newest = FORMATS
    first = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"Formats {', '.join(map(str, older))} and {newest} are read, {FORMAT}" in first
