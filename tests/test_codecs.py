"""Compressed codecs: what they give back, what they cost, and that any Zarr reader reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from kdcache.building.builder import build
from kdcache.building.capture import Capture
from kdcache.errors import ConfigError, DamageError, ModelError
from kdcache.losses import CacheSpec, SoftKL, soft_and_hard
from kdcache.losses.binding import bind
from kdcache.maintenance.verifying import verify
from kdcache.models import load_teacher
from kdcache.signals import (
    HEAD,
    Head,
    HeadLabels,
    Hidden,
    HiddenHead,
    ModelSizes,
    SampledLogits,
    SmallTopK,
    from_json,
)
from kdcache.signals.codecs import int4
from kdcache.signals.codecs.gaps import join, planes, split
from kdcache.signals.codecs.vocabulary import Vocabulary, by_frequency, from_bytes
from kdcache.store import Cache, open_cache
from kdcache.store.format.array_reader import plan_layout
from kdcache.store.format.compressed_reader import PackedReader, encode_rows
from kdcache.store.format.zarr_metadata import create_arrays, create_group
from kdcache.tasks import TASKS
from kdcache_kernels import topk_kl
from tests.activations import Outputs, activations

PACKINGS = ["zstd", "columns"]


def rows_of(rows: int, classes: int, seed: int = 0) -> torch.Tensor:
    """Logits as language models give them: a power law over shuffled ids, and noise."""
    rng = np.random.default_rng(seed)
    law = -1.3 * np.log(np.arange(1, classes + 1)) + rng.normal(0, 1.2, (rows, classes))
    return torch.from_numpy(law[:, rng.permutation(classes)].astype(np.float32))


def outputs_of(logits: torch.Tensor) -> Outputs:
    return activations(logits=logits, hidden=[], mask=torch.ones(len(logits), 1, dtype=torch.bool))


def some_order(classes: int) -> Vocabulary:
    """An order that is neither that of the ids nor its reverse."""
    return by_frequency(np.random.default_rng(5).integers(0, 9, classes), classes)


@given(
    vocabulary=st.sampled_from([1, 2, 256, 257, 65_536, 65_537, 2**24]),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_rising_ranks_survive_their_planes(vocabulary: int, width: int, seed: int) -> None:
    ranks = np.sort(np.random.default_rng(seed).integers(0, vocabulary, (3, width)), axis=1)
    ranks[0], ranks[1, -1] = 0, vocabulary - 1
    made = split(torch.from_numpy(np.sort(ranks, axis=1)), vocabulary)
    assert len(made) == planes(vocabulary)
    assert all(plane.dtype == torch.uint8 for plane in made.values())
    np.testing.assert_array_equal(join(made, vocabulary), np.sort(ranks, axis=1))


@pytest.mark.parametrize("size", [1, 300, 65_536, 65_537])
def test_a_vocabulary_is_ordered_by_counts_and_survives_its_bytes(size: int) -> None:
    counts = np.random.default_rng(0).integers(0, 5, size)
    made = by_frequency(counts, size)
    ordered = counts[made.ids.numpy()]
    assert (np.diff(ordered) <= 0).all()
    equal = np.diff(ordered) == 0
    assert (np.diff(made.ids.numpy())[equal] > 0).all()
    np.testing.assert_array_equal(made.ranks[made.ids], np.arange(size))
    assert torch.equal(from_bytes(made.to_bytes(), size).ids, made.ids)


@pytest.mark.parametrize("damage", [b"", b"\0\0", None])
def test_bytes_that_are_no_permutation_are_refused(damage: bytes | None) -> None:
    data = damage if damage is not None else b"\1\0" * 40
    with pytest.raises(DamageError, match="it is no order of 40 ids"):
        from_bytes(data, 40)


@pytest.mark.parametrize(
    ("classes", "k"), [(600, 1), (600, 64), (600, 600), (1, 1), (65_536, 50), (70_000, 33)]
)
def test_small_keeps_the_likeliest_ids_their_mass_and_the_tail(classes: int, k: int) -> None:
    logits = rows_of(9, classes)
    signal = SmallTopK(k=k, vocabulary=some_order(classes))
    encoded = signal.encode(outputs_of(logits))
    for spec in signal.arrays(TASKS["masked-lm"], ModelSizes(outputs=classes, hidden=8, layers=1)):
        assert encoded[spec.name].shape[1:] == spec.row_shape
        assert str(encoded[spec.name].numpy().dtype) == spec.dtype
    soft = signal.soft(encoded, classes)
    truth = log_softmax(logits.double().numpy(), axis=1)
    best = np.sort(np.argsort(-truth, axis=1, kind="stable")[:, :k], axis=1)
    np.testing.assert_array_equal(np.sort(soft.ids, axis=1), best)
    assert soft.tail_logmass is not None
    kept = np.exp(soft.logprobs.double().numpy()).sum(1)
    np.testing.assert_allclose(kept + np.exp(soft.tail_logmass.double().numpy()), 1, atol=1e-5)
    outside = np.exp(truth).sum(1) - np.take_along_axis(np.exp(truth), best, 1).sum(1)
    np.testing.assert_allclose(soft.tail_logmass.exp(), outside, atol=1e-3)


def test_small_codes_cost_less_than_a_thousandth_of_a_nat() -> None:
    logits = rows_of(400, 5000)
    signal = SmallTopK(k=64, vocabulary=some_order(5000))
    found = signal.summarise(
        signal.measure(outputs_of(logits), signal.encode(outputs_of(logits)), torch.arange(400))
    )
    assert found["kl_mean"] < 3e-4
    assert found["kl_max"] < 1e-3
    coarse = replace(signal, levels=32)
    lost = coarse.summarise(
        coarse.measure(outputs_of(logits), coarse.encode(outputs_of(logits)), torch.arange(400))
    )
    assert lost["kl_mean"] > 10 * found["kl_mean"]


def test_sampling_is_unbiased_over_seeds() -> None:
    logits = rows_of(2, 30) * 1.5
    truth, seeds, n = softmax(logits.double().numpy(), axis=1), 1000, 7
    total = np.zeros_like(truth)
    for seed in range(seeds):
        signal = SampledLogits(n=n, seed=seed, vocabulary=some_order(30))
        total += estimate(signal, logits)
    # Stratified draws vary at most as much as independent ones: five standard errors of those.
    error = np.sqrt(truth * (1 - truth) / (n * seeds))
    assert (np.abs(total / seeds - truth) <= 5 * error + 1e-12).all()


def estimate(signal: SampledLogits, logits: torch.Tensor) -> np.ndarray[Any, Any]:
    """Shares of the draws, over all classes, by a loop."""
    soft = signal.soft(signal.encode(outputs_of(logits)), logits.shape[1])
    found = np.zeros(logits.shape)
    for row, (ids, logprobs) in enumerate(zip(soft.ids, soft.logprobs, strict=True)):
        for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
            if token >= 0:
                assert found[row, token] == 0, "an id must come once"
                found[row, token] = np.exp(logprob)
    return found


@pytest.mark.parametrize("n", [1, 50, 700])
def test_sampled_counts_add_up_to_the_draws(n: int) -> None:
    logits = rows_of(6, 600)
    shares = estimate(SampledLogits(n=n, vocabulary=some_order(600)), logits)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(shares * n, np.round(shares * n), atol=1e-3)
    # A stratum each: a likely token's count is off by less than the two strata at its ends.
    assert np.abs(shares * n - softmax(logits.double().numpy(), axis=1) * n).max() < 2


def test_draws_depend_on_a_row_and_the_seed_alone() -> None:
    logits = rows_of(9, 400)
    signal = SampledLogits(n=20, vocabulary=some_order(400))
    whole = signal.encode(outputs_of(logits))
    for name, rows in signal.encode(outputs_of(logits[4:6])).items():
        assert torch.equal(rows, whole[name][4:6])
    other = replace(signal, seed=1).encode(outputs_of(logits))
    assert not torch.equal(other["gaps_0"], whole["gaps_0"])


def test_tokens_without_probability_are_never_drawn() -> None:
    logits = torch.full((3, 50), -torch.inf)
    logits[:, 7], logits[:, 49] = 0.0, 1.0
    shares = estimate(SampledLogits(n=64, vocabulary=some_order(50)), logits)
    assert set(np.flatnonzero(shares.sum(0))) == {7, 49}


def test_the_sampled_gradient_is_that_of_the_estimate() -> None:
    logits, student = rows_of(5, 80), rows_of(5, 80, seed=1).requires_grad_()
    signal = SampledLogits(n=30, vocabulary=some_order(80))
    soft = signal.soft(signal.encode(outputs_of(logits)), 80)
    topk_kl(student, soft.ids, soft.logprobs, tail_logmass=soft.tail_logmass).backward()
    wanted = softmax(student.detach().double().numpy(), axis=1) - estimate(signal, logits)
    assert student.grad is not None
    np.testing.assert_allclose(student.grad, wanted / 5, atol=1e-6)


def test_sampled_labels_refuse_another_temperature() -> None:
    spec = CacheSpec(
        task=TASKS["masked-lm"],
        label_kind="tokens",
        signals={"logits": SampledLogits()},
        shape=ModelSizes(outputs=600, hidden=8, layers=1),
        labelled=1,
    )
    bind("kl", SoftKL(), spec, spec.shape)
    with pytest.raises(ConfigError, match=r"tells the teacher at temperature 1\. Set losses"):
        bind("kl", SoftKL(temperature=2.0), spec, spec.shape)


@pytest.mark.parametrize("group", [2, 16, 48])
def test_int4_error_is_small_and_no_group_is_off_by_a_level(group: int) -> None:
    rows = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    rows[:, ::17] *= 30
    rows[3], rows[4, :group] = 0, 1e-8
    codes, scale = int4.unpack(*int4.pack(rows, group))
    assert codes.dtype == torch.int8
    decoded = (codes.float().unflatten(1, (-1, group)) * scale[..., None]).flatten(1)
    assert (decoded[3] == 0).all()
    top = rows.unflatten(1, (-1, group)).abs().amax(-1, keepdim=True)
    widest = np.diff(int4.LEVELS).max() / 2 / 127  # half of the widest step, on a scale that fits
    worst = (decoded - rows).unflatten(1, (-1, group)).abs() - 1.35 * widest * top
    assert worst.max() < 2e-4


def test_a_scale_of_int4_has_its_bits_wherever_it_stands() -> None:
    scales = torch.arange(256, dtype=torch.uint8).view(-1, 1)
    codes = torch.zeros(256, 8, dtype=torch.uint8)
    _, whole = int4.unpack(codes, scales)
    each = torch.cat([int4.unpack(codes[:1], one.view(1, 1))[1] for one in scales])
    assert whole.numpy().tobytes() == each.numpy().tobytes()
    steps = (np.arange(128) + int4.LEAST).astype(np.float32) / np.float32(int4.STEPS)
    size = np.array([2.0 ** float(step) for step in steps]).astype(np.float32) / np.float32(127)
    assert whole[:128, 0].numpy().tobytes() == size.tobytes()
    assert whole[128:, 0].numpy().tobytes() == (-size).tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e4])
def test_int4_refuses_what_it_cannot_hold(value: float) -> None:
    rows = torch.zeros(3, 32)
    rows[1, 5] = value
    with pytest.raises(ValueError, match="row 1 is not"):
        int4.pack(rows, 16)
    layers = [rows[:, None]]
    outputs = activations(logits=rows, hidden=layers, mask=torch.ones(3, 1, dtype=torch.bool))
    with pytest.raises(ModelError, match="hidden of layer 0 does not fit int4"):
        Hidden(layers=(0,), dtype="int4").encode(outputs)


def test_settings_written_by_earlier_versions_are_read_and_written_alike() -> None:
    stored = {
        "codec": "hidden",
        "layers": [2, 4],
        "positions": "cls",
        "dtype": "int8",
        "group": None,
    }
    assert from_json("hidden", stored).to_json() == stored
    topk = {"codec": "topk", "k": 64}
    assert from_json("logits", topk).to_json() == topk


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("row_shape", [(), (5,)], ids=["flat", "rows"])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16"])
def test_packed_shards_are_read_by_everybody(
    tmp_path: Path, packing: Any, row_shape: tuple[int, ...], dtype: str
) -> None:
    layout = plan_layout(
        "x", dtype, row_shape, part_rows=384, chunk_rows=128, parts=2, packing=packing
    )
    values = np.random.default_rng(0).integers(0, 9, layout.shape).astype(dtype)
    values[200:] = 3
    create_group(tmp_path / "s", {})
    create_arrays(tmp_path / "s", [(layout, {})])
    for part in range(2):
        path = tmp_path / "s" / layout.key(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(encode_rows(values[part * 384 : (part + 1) * 384], layout)))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "s" / "x", mode="r")[...], values)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "s" / "x")}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), values)
    reader = PackedReader(tmp_path / "s", layout)
    np.testing.assert_array_equal(reader[0:768], values)
    starts, counts = np.array([5, 700, 100, 5]), np.array([0, 60, 300, 1])
    wanted = np.concatenate([values[a : a + n] for a, n in zip(starts, counts, strict=True)])
    np.testing.assert_array_equal(reader.read(starts, counts), wanted)
    assert path.stat().st_size < layout.shard_bytes


def test_every_flipped_bit_and_cut_of_a_packed_shard_is_noticed(tmp_path: Path) -> None:
    layout = plan_layout(
        "x", "uint8", (3,), part_rows=256, chunk_rows=128, parts=1, packing="columns"
    )
    values = np.random.default_rng(0).integers(0, 4, layout.shape, np.uint8)
    path = tmp_path / layout.key(0)
    path.parent.mkdir(parents=True)
    data = b"".join(encode_rows(values, layout))
    for at in range(0, 8 * len(data), 5):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(DamageError, match=str(path)):
            PackedReader(tmp_path, layout).check_shard(0)
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(DamageError, match=str(path)):
            PackedReader(tmp_path, layout).check_shard(0)
    path.write_bytes(data)
    PackedReader(tmp_path, layout).check_shard(0)


CACHES = {
    "small": ["logits:topk-small,k=16,draws=8", "hidden:layers=2-4,positions=masked,dtype=int4"],
    "sampled": ["logits:sampled,n=30", "hidden:layers=4,positions=all,dtype=fp8,compress=zstd"],
    "head": ["logits:hidden-head,dtype=fp32", "hidden:layers=1,dtype=int8,compress=zstd"],
}


@pytest.fixture(scope="module", params=CACHES)
def packed(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    prose_file: Path,
    masked_lm: Path,
) -> Cache:
    """A masked-lm cache of several parts with compressed signals."""
    return build(
        prose_file,
        teacher=masked_lm,
        task=TASKS["masked-lm"],
        out=tmp_path_factory.mktemp("packed") / "cache",
        signals=CACHES[request.param],
        max_length=48,
        part_tokens=2048,
    )


def test_a_packed_cache_is_whole_and_read_by_everybody(packed: Cache) -> None:
    assert packed.plan.parts > 1
    assert verify(packed.path, full=True) == []
    for name in packed.layouts:
        values = zarr.open_array(packed.path / name, mode="r")[...]
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(packed.path / name)}}
        np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), values)
        docs = packed.plan.docs
        starts, counts = packed.plan.spans(docs, packed.spaces[name])
        rows = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, counts, strict=True)])
        np.testing.assert_array_equal(packed.read(name, docs), values[rows])


def test_bytes_of_a_packed_cache_are_those_on_disk(packed: Cache) -> None:
    for name, size in packed.bytes.items():
        shards = [p for p in (packed.path / name / "c").rglob("*") if p.is_file()]
        assert sum(p.stat().st_size for p in shards) == size


def test_a_resumed_packed_build_gives_the_same_bytes(
    packed: Cache, tmp_path: Path, prose_file: Path, masked_lm: Path
) -> None:
    texts = next(texts for texts in CACHES.values() if opened(texts) == packed.signals["logits"])
    again = build(
        prose_file,
        teacher=masked_lm,
        task=TASKS["masked-lm"],
        out=tmp_path / "again",
        signals=texts,
        max_length=48,
        part_tokens=2048,
    )
    for name in packed.layouts:
        files = [p for p in (packed.path / name).rglob("*") if p.is_file()]
        for path in files:
            assert path.read_bytes() == (again.path / path.relative_to(packed.path)).read_bytes()


def opened(texts: list[str]) -> Any:
    from kdcache.signals import parse

    return parse(texts[0])


@pytest.mark.parametrize("packed", ["small"], indirect=True)
def test_numpy_reads_small_labels_from_the_arrays_alone(packed: Cache) -> None:
    group = zarr.open_group(packed.path, mode="r")
    logits = group["logits"]
    where = logits["gaps_0"].attrs["ranks_of"]
    raw = group[where][...][: group[where].attrs["bytes"]]
    order = raw.view(logits["gaps_0"].attrs["dtype"])
    gaps = logits["gaps_0"][...].astype(int) + 256 * logits["gaps_1"][...].astype(int)
    codes = logits["floor"][...].astype(int)[:, None] - logits["logprobs"][...]
    coarse = np.array(logits["logprobs"].attrs["codebook"])[codes]
    docs = packed.plan.docs
    starts, counts = packed.plan.spans(docs, "selected")
    rows = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, counts, strict=True)])
    soft = packed.soft_labels(docs)
    np.testing.assert_array_equal(order[gaps.cumsum(1)][rows], soft.ids)
    shift = soft.logprobs.numpy() - coarse[rows]
    np.testing.assert_allclose(shift, np.repeat(shift[:, :1], 16, 1), atol=1e-5)


@pytest.mark.parametrize("packed", ["head"], indirect=True)
def test_hidden_head_gives_the_teachers_own_distribution(packed: Cache, masked_lm: Path) -> None:
    teacher = load_teacher(masked_lm, task="masked-lm", device="cpu")
    docs = packed.plan.docs[:20]
    batch = packed.batch(docs, [])
    with torch.inference_mode():
        out = teacher.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits = out.logits.flatten(0, 1)[batch["selected"]]
    soft = packed.soft_labels(docs)
    np.testing.assert_allclose(soft.values, logits, atol=2e-4)
    assert packed.fidelity["logits"]["kl_max"] < 1e-6
    assert packed.fidelity["logits"]["top1_agreement"] == 1


@pytest.mark.parametrize("packed", ["head"], indirect=True)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_through_both_heads_is_the_loss_on_logits(
    packed: Cache, temperature: float
) -> None:
    signal = packed.signals["logits"]
    assert isinstance(signal, HiddenHead)
    batch = packed.batch(packed.plan.docs[:9], packed.arrays_of("logits"))
    labels = packed.decode(batch, HEAD)
    assert isinstance(labels, HeadLabels)
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(len(labels.rows.codes), 12, generator=rng).requires_grad_()
    weight = torch.randn(packed.shape.outputs, 12, generator=rng)
    fused, _, _ = soft_and_hard(
        Head(hidden=rows, weight=weight),
        labels,
        temperature=temperature,
        labels=batch["labels"],
        hard_weight=0.5,
    )
    (found,) = torch.autograd.grad(fused, rows)
    plain, _, _ = soft_and_hard(
        rows @ weight.T, labels, temperature=temperature, labels=batch["labels"], hard_weight=0.5
    )
    (wanted,) = torch.autograd.grad(plain, rows)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("packed", ["head"], indirect=True)
def test_a_damaged_output_layer_is_refused_when_it_is_needed(packed: Cache, tmp_path: Path) -> None:
    import shutil

    root = Path(shutil.copytree(packed.path, tmp_path / "copy"))
    shard = next(p for p in (root / "files/logits").rglob("c/*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 8
    shard.write_bytes(data)
    with pytest.raises(DamageError, match=str(shard)):
        open_cache(root).soft_labels(packed.plan.docs[:1])


def halve(model: Any, inputs: Any, outputs_of: Any) -> Any:
    outputs_of.logits = outputs_of.logits / 2
    return outputs_of


def test_a_teacher_that_changes_its_logits_is_refused(packed: Cache, masked_lm: Path) -> None:
    signal = HiddenHead()
    with pytest.raises(ConfigError, match="is for language models"):
        signal.check(TASKS["text-classification"], packed.shape)
    teacher = load_teacher(masked_lm, task="masked-lm", device="cpu")
    teacher.model.register_forward_hook(halve)
    capture = Capture(packed, teacher, 1024)
    capture.taps = {HEAD}
    with pytest.raises(ModelError, match="take logits instead"):
        capture.part(0, lambda done: None)


def test_classes_can_be_small_and_sampled(tmp_path: Path, corpus: Path, classifier: Path) -> None:
    for text in ("logits:topk-small,k=2", "logits:sampled,n=9"):
        made = build(
            corpus,
            teacher=classifier,
            task="text-classification",
            out=tmp_path / text,
            signals=[text],
            limit=40,
        )
        order = made.file("logits/vocabulary")
        assert order == np.arange(3, dtype="<u2").tobytes()
        assert made.soft_labels(made.plan.docs).ids.max() == 2
