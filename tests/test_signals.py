"""Every signal gives back what it was given, within the error it states, for any reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from kdcache.errors import ConfigError, ModelError
from kdcache.signals import (
    POSITIONS,
    DenseLogits,
    Hidden,
    HiddenHead,
    ModelSizes,
    SampledLogits,
    SmallTopK,
    Tap,
    TopKLogits,
    from_json,
    merge,
    parse,
    parse_all,
    select,
)
from kdcache.signals.codecs.codebook import high_bits, pack_high, unpack_high
from kdcache.store import Cache
from kdcache.tasks import TASKS
from tests.activations import Outputs, activations

SHAPE = ModelSizes(outputs=600, hidden=48, layers=4)
DTYPES = ["int8", "bf16", "fp16", "fp32"]
EXAMPLES = {
    "logits:dense": DenseLogits(),
    "logits:dense,dtype=fp16": DenseLogits(dtype="fp16"),
    "logits:topk": TopKLogits(k=64),
    " logits : topk , k = 7 ".replace(" : ", ":"): TopKLogits(k=7),
    "logits:topk-small": SmallTopK(k=64, levels=184),
    "logits:topk-small,k=8,levels=96": SmallTopK(k=8, levels=96),
    "logits:sampled": SampledLogits(n=50, seed=0),
    "logits:sampled,n=12,seed=3": SampledLogits(n=12, seed=3),
    "logits:hidden-head": HiddenHead(dtype="fp16"),
    "logits:hidden-head,dtype=int8,group=64": HiddenHead(dtype="int8", group=64),
    "hidden:layers=2": Hidden(layers=(2,)),
    "hidden:layers=4-0-2,positions=mean,dtype=bf16": Hidden(
        layers=(4, 0, 2), positions="mean", dtype="bf16"
    ),
    "hidden:layers=1,group=16": Hidden(layers=(1,), group=16),
    "hidden:layers=1,dtype=int4,compress=zstd": Hidden(layers=(1,), dtype="int4", compress="zstd"),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_means_over_tokens_are_summed_in_float32(dtype: torch.dtype) -> None:
    """700 states of 300 sum beyond float16; in bfloat16 a sum stops growing at some 2^8 terms."""
    hidden = torch.full((2, 700, 4), 300.0, dtype=dtype)
    hidden[1, ::2] = 100.0
    mask = torch.ones(2, 700, dtype=torch.bool)
    mask[1, 650:] = False
    found = select(hidden, "mean", mask, None)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor([300.0, 200.0])[:, None].expand(2, 4))
    for stored in ("int8", "fp16"):
        signal = Hidden(layers=(0,), positions="mean", dtype=stored)
        codes = signal.encode(activations(logits=torch.empty(0), hidden=[hidden], mask=mask))
        back = signal.decode(codes, Tap("hidden", 0)).dense().float()
        torch.testing.assert_close(back, found, rtol=1e-2, atol=0)


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_signal_is_read_from_text_and_from_its_own_json(text: str) -> None:
    signal = parse(text)
    assert signal == EXAMPLES[text]
    assert from_json(signal.kind, signal.to_json()) == signal


BAD = {
    "logit:topk": "unknown signal 'logit'; did you mean 'logits'",
    "": "unknown signal ''",
    "logits": "signal 'logits' needs a codec, as in logits:dense",
    "logits:topp": "unknown codec of logits 'topp'; did you mean 'topk'",
    "logits:topk,kk=4": "unknown option of .* 'kk'; did you mean 'k'",
    "logits:topk,k": "option 'k' needs a value, as in k=",
    "logits:topk,k=": "option 'k' needs a value",
    "logits:topk,k=four": "k is a whole number; got 'four'",
    "logits:topk,k=0": r"k of logits:topk must lie in \[1, 65536\]; got 0",
    "logits:topk,k=4,k=5": "option 'k' is given twice",
    "logits:dense,dtype=bf16": "unknown dtype of logits:dense 'bf16'",
    "hidden": "needs layers, as in hidden:layers=2-4-6",
    "hidden:layers=2-x": "as in layers=2-4-6; got '2-x'",
    "hidden:layers=2-2": "must be distinct and 0 or more",
    "hidden:layers=-1": "numbers, as in layers=2-4-6",
    "hidden:layers=1,positions=csl": "unknown positions of hidden 'csl'; did you mean 'cls'",
    "hidden:layers=1,dtype=int5": "unknown dtype of hidden 'int5'; did you mean 'int",
    "hidden:layers=1,dtype=int4,group=3": "int4 packs values in pairs: group=3 must be even",
    "hidden:layers=1,compress=zst": "unknown compress of hidden 'zst'; did you mean 'zstd'",
    "hidden:layers=1,dtype=fp16,group=16": "group=16 needs dtype=int8 or int4",
    "logits:topk-small,levels=300": r"levels of logits:topk-small must lie in \[2, 256\]; got 300",
    "logits:topk-small,vocabulary=x": "unknown option of .* 'vocabulary'",
    "logits:hidden-head,layer=x": "unknown option of .* 'layer'",
    "logits:sampled,n=0": r"n of logits:sampled must lie in \[1, 65536\]; got 0",
    "hidden:layers=1,group=0": "group=0 needs .* a group of 1 or more",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_specification_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ConfigError, match=BAD[text]):
        parse(text)


def test_one_signal_of_each_name() -> None:
    with pytest.raises(ConfigError, match="signal 'logits' is given twice"):
        parse_all(["logits:dense", "logits:topk,k=4"])
    assert list(parse_all(["logits:dense", "hidden:layers=1"])) == ["logits", "hidden"]


@pytest.mark.parametrize(
    ("text", "task", "message"),
    [
        ("logits:topk,k=601", "masked-lm", "the teacher has 600 outputs; use k=600 or less, or"),
        ("hidden:layers=1-5", "masked-lm", r"layer 5 is out of range; .* 0 \(embedding .* to 4"),
        ("hidden:layers=1,group=32", "masked-lm", "group=32 does not divide the hidden width 48"),
        (
            "hidden:layers=1,positions=masked",
            "causal-lm",
            "needs a task that selects tokens",
        ),
    ],
)
def test_a_signal_the_teacher_cannot_give_is_refused(text: str, task: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text).check(TASKS[task], SHAPE)


@pytest.mark.parametrize("record", [{"codec": "topk", "q": 1}, {"codec": "top"}, {}])
def test_a_manifest_of_another_version_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"signal 'logits' of the manifest|unknown codec"):
        from_json("logits", record)


def distributions(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    """Logits as language models give them: a few likely tokens, a power law below, some noise."""
    rng = np.random.default_rng(seed)
    law = -np.log(np.arange(1, vocabulary + 1)) * rng.uniform(0.7, 2.5, (rows, 1))
    peaks = np.zeros((rows, vocabulary))
    peaks[:, :4] = rng.uniform(0, 12, (rows, min(4, vocabulary)))
    logits = law + peaks + rng.normal(0, 0.7, (rows, vocabulary))
    shuffled = rng.permuted(logits, axis=1) + rng.normal(0, 5, (rows, 1))
    return torch.from_numpy(shuffled.astype(np.float32))


def outputs(logits: torch.Tensor) -> Outputs:
    return activations(logits=logits, hidden=[], mask=torch.ones(len(logits), 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("vocabulary", "k"),
    [(600, 1), (600, 64), (600, 600), (1, 1), (65_536, 50), (65_537, 64), (151_936, 13)],
)
def test_topk_keeps_ids_order_and_mass(vocabulary: int, k: int) -> None:
    logits, signal = distributions(11, vocabulary), TopKLogits(k=k)
    soft = signal.soft(signal.encode(outputs(logits)), vocabulary)
    truth = log_softmax(logits.double().numpy(), axis=1)
    order = np.argsort(-truth, axis=1, kind="stable")
    np.testing.assert_array_equal(soft.ids, order[:, :k])
    decoded = soft.logprobs.double().numpy()
    assert (np.diff(decoded, axis=1) <= 0).all()
    rest = np.take_along_axis(truth, order[:, k:], 1)
    assert soft.tail_logmass is not None
    assert soft.tail_stat is not None
    tail = soft.tail_logmass.double().numpy()
    if k < vocabulary:
        np.testing.assert_allclose(tail, logsumexp(rest, axis=1), atol=1e-5)
        np.testing.assert_allclose(soft.tail_stat, logsumexp(rest / 2, axis=1), atol=1e-5)
    else:
        assert np.isneginf(tail).all()
    np.testing.assert_allclose(np.exp(decoded).sum(1) + np.exp(tail), 1, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_codes_cost_less_than_half_a_thousandth_of_a_nat(seed: int) -> None:
    logits, signal = distributions(500, 5000, seed), TopKLogits(k=64)
    soft = signal.soft(signal.encode(outputs(logits)), 5000)
    truth = np.take_along_axis(
        log_softmax(logits.double().numpy(), axis=1), soft.ids.numpy(), axis=1
    )
    lost = (np.exp(truth) * (truth - soft.logprobs.double().numpy())).sum(1)
    assert soft.tail_logmass is not None
    # The tail is exact, so the codes' share of KL(teacher || decoded) is all there is.
    assert lost.mean() < 5e-4
    assert lost.max() < 5e-3
    np.testing.assert_array_equal(soft.ids[:, 0], logits.argmax(1))


@given(
    vocabulary=st.integers(65_537, 2**24),
    k=st.integers(1, 70),
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_ids_beyond_16_bits_survive_packing(vocabulary: int, k: int, rows: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, vocabulary, (rows, k))
    ids[0, 0], ids[-1, -1] = vocabulary - 1, 0
    bits = high_bits(vocabulary)
    assert 2 ** (16 + bits - 1) <= vocabulary - 1 < 2 ** (16 + bits)
    packed = pack_high(torch.from_numpy(ids), bits)
    assert tuple(packed.shape) == (rows, (k * bits + 7) // 8)
    low = torch.from_numpy(ids & 0xFFFF)
    np.testing.assert_array_equal(unpack_high(packed, k, bits) | low, ids)
    # As the manifest's `bits` lets anybody read it: little-endian bits, id after id.
    flat = np.unpackbits(packed.numpy(), axis=1, bitorder="little")[:, : k * bits]
    high = (flat.reshape(rows, k, bits) << np.arange(bits)).sum(-1)
    np.testing.assert_array_equal((high << 16) | (ids & 0xFFFF), ids)


def test_dense_logits_are_exact() -> None:
    logits = distributions(11, 7) * 30
    signal = DenseLogits()
    soft = signal.soft(signal.encode(outputs(logits)), 7)
    assert soft.values is not None
    np.testing.assert_array_equal(soft.values, logits)
    np.testing.assert_allclose(soft.logprobs, log_softmax(logits.double(), axis=1), atol=1e-5)
    half = DenseLogits(dtype="fp16")
    kept = half.soft(half.encode(outputs(logits)), 7).values
    np.testing.assert_array_equal(kept, logits.half().float())


def hidden_outputs(scale: float = 1.0) -> Outputs:
    """Four layers of three documents of 5, 1 and 3 tokens, a few columns large, NaN in pads."""
    rng = torch.Generator().manual_seed(0)
    mask = torch.arange(5)[None, :] < torch.tensor([5, 1, 3])[:, None]
    layers = []
    for _ in range(5):
        layer = torch.randn(3, 5, 48, generator=rng) * scale
        layer[..., ::17] *= 40
        layer[2, 1] = 0
        layers.append(layer.masked_fill(~mask[..., None], 1e3))
    selected = torch.tensor([1, 3, 5, 10])
    return activations(logits=torch.zeros(3, 2), hidden=layers, mask=mask, selected=selected)


def rows_at(outputs: Outputs, layer: int, positions: str) -> np.ndarray[Any, Any]:
    """What is to be kept, picked by loops."""
    values, lens = outputs.hidden[layer].double().numpy(), outputs.mask.sum(1).tolist()
    if positions == "cls":
        return np.stack([document[0] for document in values])
    if positions == "mean":
        return np.stack([d[:n].mean(0) for d, n in zip(values, lens, strict=True)])
    if positions == "all":
        return np.concatenate([d[:n] for d, n in zip(values, lens, strict=True)])
    assert outputs.selected is not None
    return np.stack([values[i // 5, i % 5] for i in outputs.selected.tolist()])


def bound(truth: np.ndarray[Any, Any], dtype: str, group: int | None) -> np.ndarray[Any, Any]:
    """The largest error of each value that the dtype allows."""
    if dtype == "fp32":
        return 1e-6 * np.abs(truth).max(1, keepdims=True)  # of the mean; the others are exact
    if dtype in ("bf16", "fp16"):
        return np.abs(truth) * 2.0 ** (-8 if dtype == "bf16" else -11) + 1e-6
    blocks = truth.reshape(len(truth), -1, group or truth.shape[1])
    top = np.abs(blocks).max(-1, keepdims=True)
    # Half a step, and the scale itself is rounded to float16, which may clip the largest value.
    return np.broadcast_to(top * (0.5 / 127 + 2**-10) + 1e-7, blocks.shape).reshape(truth.shape)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize(
    ("dtype", "group"), [*((dtype, None) for dtype in DTYPES), ("int8", 16), ("int8", 1)]
)
def test_hidden_states_come_back_within_their_dtypes_error(
    positions: str, dtype: str, group: int | None
) -> None:
    activations = hidden_outputs()
    signal = Hidden(layers=(0, 3), positions=positions, dtype=dtype, group=group)
    encoded = signal.encode(activations)
    specs = {spec.name: spec for spec in signal.arrays(TASKS["masked-lm"], SHAPE)}
    assert set(encoded) == set(specs)
    for layer in (0, 3):
        truth = rows_at(activations, layer, positions)
        decoded = signal.decode(encoded, Tap("hidden", layer)).dense().double().numpy()
        assert decoded.shape == truth.shape
        assert (np.abs(decoded - truth) <= bound(truth, dtype, group)).all()
    for name, spec in specs.items():
        assert encoded[name].shape[1:] == spec.row_shape
        assert str(encoded[name].numpy().dtype) == spec.dtype
        assert spec.space == POSITIONS[positions]


@pytest.mark.parametrize(
    ("signal", "scale", "message"),
    [
        (Hidden(layers=(3,), dtype="fp16"), 1e4, "layer 3 does not fit fp16; store it as bf16"),
        (Hidden(layers=(3,), dtype="int8"), 1e7, "layer 3 does not fit int8: "),
    ],
)
def test_values_beyond_a_dtype_are_an_error(signal: Hidden, scale: float, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        signal.encode(hidden_outputs(scale))


def test_logits_beyond_fp16_are_an_error() -> None:
    with pytest.raises(ModelError, match="too large for fp16; store the logits with dtype=fp32"):
        DenseLogits(dtype="fp16").encode(outputs(torch.tensor([[7e4, 0.0]])))


@pytest.mark.parametrize("signal", [TopKLogits(k=8), DenseLogits(dtype="fp16")])
def test_fidelity_is_that_of_the_decoded_rows(signal: Any) -> None:
    """The figures of two halves, merged, are those of a direct float64 computation."""
    logits = distributions(40, 90)
    activations, encoded = outputs(logits), signal.encode(outputs(logits))
    halves = [torch.arange(0, 13), torch.arange(13, 40)]
    found = signal.summarise(merge([signal.measure(activations, encoded, rows) for rows in halves]))
    truth = log_softmax(logits.double().numpy(), axis=1)
    soft = signal.soft(encoded, 90)
    p = np.take_along_axis(truth, soft.ids.numpy(), axis=1)
    q = soft.logprobs.double().numpy()
    if isinstance(signal, TopKLogits):
        kept = np.exp(p).sum(1)
        assert soft.tail_logmass is not None
        tail = soft.tail_logmass.double().numpy()
        p, q = np.column_stack([p, np.log1p(-kept)]), np.column_stack([q, tail])
        assert found["kept_mass"] == pytest.approx(kept.mean(), rel=1e-5)
        even = np.repeat((tail - np.log(82))[:, None], 90, 1)
        np.put_along_axis(even, soft.ids.numpy(), q[:, :8], 1)
        full = (np.exp(truth) * (truth - even)).sum(1)
        assert found["full_kl_mean"] == pytest.approx(full.mean(), rel=1e-4)
        assert found["full_kl_max"] == pytest.approx(full.max(), rel=1e-4)
    else:
        assert soft.values is not None
        q = log_softmax(soft.values.double().numpy(), axis=1)
    kl = (np.exp(p) * (p - q)).sum(1)
    assert found["rows"] == 40
    assert found["kl_mean"] == pytest.approx(kl.mean(), rel=1e-3, abs=1e-8)
    assert found["kl_max"] == pytest.approx(kl.max(), rel=1e-3, abs=1e-8)
    assert found["top1_agreement"] == 1.0


def test_numpy_reads_soft_labels_from_the_arrays_attributes_alone(masked_cache: Cache) -> None:
    group = zarr.open_group(masked_cache.path, mode="r")["logits"]
    docs = masked_cache.plan.docs[:50]
    starts, counts = masked_cache.plan.spans(docs, "selected")
    rows = np.concatenate([np.arange(a, a + n) for a, n in zip(starts, counts, strict=True)])
    book = np.array(group["logprobs"].attrs["codebook"])
    coarse = book[group["logprobs"][...][rows]]
    tail = group["tail_logmass"][...][rows].astype(np.float64)
    fine = coarse + (np.log1p(-np.exp(tail)) - logsumexp(coarse, axis=1))[:, None]
    soft = masked_cache.soft_labels(docs)
    np.testing.assert_array_equal(group["ids"][...][rows], soft.ids)
    np.testing.assert_allclose(fine, soft.logprobs, atol=2e-6)
    assert dict(group["tail_stat"].attrs)["temperature"] == 2.0
    assert group["logprobs"].attrs["unit"] == "nats"


def test_numpy_reads_hidden_states_from_the_arrays_alone(
    masked_cache: Cache, causal_cache: Cache
) -> None:
    layer = zarr.open_group(causal_cache.path, mode="r")["hidden/L4/codes"]
    assert layer.attrs["bitcast"] == "bfloat16"
    docs = causal_cache.plan.docs[3:4]
    start, count = (int(x[0]) for x in causal_cache.plan.spans(docs, "token"))
    bits = layer[start : start + count].astype(np.uint32) << 16
    np.testing.assert_array_equal(bits.view(np.float32), causal_cache.hidden(4, docs).dense())
    group = zarr.open_group(masked_cache.path, mode="r")["hidden/L2"]
    docs = masked_cache.plan.docs[3:4]
    start, count = (int(x[0]) for x in masked_cache.plan.spans(docs, "selected"))
    codes = group["codes"][start : start + count].astype(np.float32).reshape(count, 2, 16)
    scale = group["scale"][start : start + count].astype(np.float32)
    values = (codes * scale[..., None]).reshape(count, 32)
    np.testing.assert_array_equal(values, masked_cache.hidden(2, docs).dense())
