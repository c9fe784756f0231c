"""What a model says of a document is what it says of it alone, or the model is refused."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.errors import ModelError
from kdcache.maintenance.spot_check import spot_check
from kdcache.models import StudentSpec, check_alone, plain_head
from kdcache.models.run import EQUAL
from kdcache.models.student import load_student
from kdcache.plans import Plan
from kdcache.plans.batch import Batch, collate
from kdcache.progress import quiet
from kdcache.store import Cache
from kdcache.training.train import train
from tests.activations import say
from tests.conftest import save_teacher

VOCABULARY, WIDTH = 600, 16
PADDED, ALIKE = "padded", "documents of one length at a time"
CLASSES: str = "text-classification"
AUTO: dict[str, Any] = {
    CLASSES: transformers.AutoModelForSequenceClassification,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "causal-lm": transformers.AutoModelForCausalLM,
}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
SHORT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": WIDTH,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "initializer_range": 0.2,
}
LLAMA = {**SIZES, "num_key_value_heads": 1, "pad_token_id": 7, "eos_token_id": 3}
NARROW = {"head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": {**SIZES, "pad_token_id": 1},
    "DistilBert": {
        "vocab_size": VOCABULARY,
        "dim": WIDTH,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 32,
        "initializer_range": 0.2,
    },
    "Albert": {**SIZES, "embedding_size": 16},
    "Electra": {**SIZES, "embedding_size": 16},
    "DebertaV2": {**SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "MPNet": {**SIZES, "pad_token_id": 1},
    "ModernBert": {**SIZES, "pad_token_id": 0, "local_attention": 8},
    "XLNet": {
        "vocab_size": VOCABULARY,
        "d_model": WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "d_inner": 32,
        "initializer_range": 0.2,
    },
    "ConvBert": {**SIZES, "embedding_size": 16, "num_attention_heads": 4},
    "FNet": SIZES,
    "Nystromformer": {**SIZES, "num_landmarks": 4, "segment_means_seq_len": 8},
    "BigBird": {**SIZES, "block_size": 8, "num_random_blocks": 1},
    "Longformer": {**SIZES, "attention_window": 8, "pad_token_id": 1},
    "Reformer": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "attn_layers": ["local", "lsh"],
        "num_attention_heads": 2,
        "attention_head_size": 8,
        "feed_forward_size": 32,
        "axial_pos_embds": False,
        "max_position_embeddings": 64,
        "is_decoder": False,
        "num_buckets": 2,
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
        "initializer_range": 0.5,
    },
    "GPT2": {**SHORT, "bos_token_id": 2, "eos_token_id": 3},
    "Llama": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, **NARROW},
    "Mistral": {**LLAMA, "sliding_window": 8},
    "Mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Gemma": {**LLAMA, **NARROW},
    "OPT": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": WIDTH,
        "max_position_embeddings": 64,
        "init_std": 0.2,
    },
    "Bloom": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.2,
    },
    "GPTNeoX": SIZES,
    "Phi": SIZES,
    "Mamba": {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "state_size": 4,
        "initializer_range": 0.2,
    },
}
REFUSED = {"Nystromformer": "cannot be run on a document", "Reformer": "hangs on the other"}
UNPADDED = {("XLNet", CLASSES), *((n, t) for n in ("ConvBert", "FNet") for t in AUTO)}
"""Models that pool at the last place of a batch, or mix every place with its neighbours."""


def config_of(family: str, **more: Any) -> Any:
    return getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **more})


def model_of(family: str, task: str, **more: Any) -> Any:
    torch.manual_seed(5)
    return AUTO[task].from_config(config_of(family, **more)).eval()


def fits(family: str, task: str) -> bool:
    """Whether kdcache runs models of a family for a task at all."""
    kind = getattr(transformers, f"{family}Config")
    masked = kind in transformers.MODEL_FOR_MASKED_LM_MAPPING
    return kind in AUTO[task]._model_mapping and not (task == "causal-lm" and masked)


FEW = {"Bert", "XLNet", "FNet", "GPT2", "Qwen2", *REFUSED}
"""Families that are tried each time, one of every way to be padded."""
CASES = [
    pytest.param(family, task, marks=() if family in FEW else pytest.mark.slow)
    for family in FAMILIES
    for task in AUTO
    if fits(family, task)
]


@pytest.fixture(scope="module")
def plans(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, corpus: Path
) -> dict[str, Plan]:
    """A plan of the same short documents for every task."""
    folder = tmp_path_factory.mktemp("plans")
    return {
        task: plan(
            corpus,
            tokenizer=tokenizer,
            task=task,
            out=folder / f"{task}.zarr",
            limit=24,
            max_length=40,
            text_columns=["text"],
        )
        for task in AUTO
    }


def alone(model: Any, task: str, made: Plan, docs: Any) -> torch.Tensor:
    """What the model says of documents as transformers runs it, one document after the other."""
    outputs = []
    for doc in docs:
        one = collate(made, np.asarray([doc]), {})
        taken = inspect.signature(model.forward).parameters.keys() & {"token_type_ids"}
        with torch.no_grad():
            logits = model(one["input_ids"], **{name: one[name] for name in taken}).logits[0]
        outputs.append({CLASSES: logits[None], "causal-lm": logits}.get(task, logits))
        if task == "masked-lm":
            outputs[-1] = logits[one["selected"]]
    return torch.cat(outputs)


def padded(model: Any, task: str, made: Plan, docs: Any) -> torch.Tensor:
    with torch.no_grad():
        return say(model, task, collate(made, docs, {}), hidden=False).logits


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_family_says_of_padded_documents_what_it_says_of_each_alone(
    family: str, task: str, plans: dict[str, Plan]
) -> None:
    model, made = model_of(family, task), plans[task]
    if family in REFUSED:
        with pytest.raises(ModelError, match=f"{REFUSED[family]}"):
            check_alone(model, task, made, name=family)
        return
    assert check_alone(model, task, made, name=family) == ((family, task) in UNPADDED)
    found, wanted = padded(model, task, made, made.docs), alone(model, task, made, made.docs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [None, 0, 3, 7, -1, VOCABULARY])
@pytest.mark.parametrize("family", ["GPT2", "Qwen2"])
def test_a_decoder_is_padded_as_its_configuration_says_whatever_documents_end_with(
    family: str, pad: int | None, plans: dict[str, Plan]
) -> None:
    """All documents end in token 3; a pad that no embedding has a row for is as good as none."""
    model, made = model_of(family, CLASSES), plans[CLASSES]
    model.config.pad_token_id = pad
    assert not check_alone(model, CLASSES, made, name=family)
    torch.testing.assert_close(
        padded(model, CLASSES, made, made.docs),
        alone(model, CLASSES, made, made.docs),
        rtol=1e-5,
        atol=1e-5,
    )
    assert model.config.pad_token_id == pad, "named for the time of a forward only"


def test_no_pad_can_be_named_where_documents_may_end_in_every_token() -> None:
    config = config_of("GPT2", vocab_size=4, num_labels=2, bos_token_id=0, eos_token_id=1)
    model = transformers.GPT2ForSequenceClassification(config).eval()
    ids = torch.tensor([[3, 0, 1], [2, 1, 2], [1, 2, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    batch = Batch(input_ids=ids, attention_mask=mask)
    with torch.no_grad():
        found = say(model, CLASSES, batch, hidden=False).logits
        for row, length in enumerate((3, 2, 1)):
            wanted = model(input_ids=ids[row : row + 1, :length]).logits[0]
            torch.testing.assert_close(found[row], wanted, rtol=1e-5, atol=1e-5)
    twice = Batch({name: torch.cat([value, value]) for name, value in batch.items()})
    with pytest.raises(ModelError, match="write a pad_token_id into its config"):
        say(model, CLASSES, twice, hidden=False)


class OfBatch(nn.Module):
    """Centres by the mean over the batch, as a BatchNorm without running statistics."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(10.0 * (x - x.mean(0, keepdim=True)))


class Capacity(nn.Module):
    """Passes on no more than half of the places of a batch, first come, first served."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        taken = torch.arange(x.numel() // x.shape[-1]) < 12
        return x * taken.view(*x.shape[:-1], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("spoil", ["mean", "capacity"])
def test_models_whose_documents_change_each_other_are_refused(
    spoil: str, dtype: torch.dtype, plans: dict[str, Plan]
) -> None:
    model = model_of("Bert", CLASSES, initializer_range=1.0)
    if spoil == "mean":
        model.classifier = OfBatch(model.classifier)
    else:
        layer = model.bert.encoder.layer[0]
        layer.output.LayerNorm = nn.Sequential(layer.output.LayerNorm, Capacity())
    with pytest.raises(ModelError, match="what spoiled says of a document hangs on the other"):
        check_alone(model.to(dtype), CLASSES, plans[CLASSES], name="spoiled")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_neither_refused_nor_believed(
    dtype: torch.dtype, plans: dict[str, Plan]
) -> None:
    for family in ("Bert", "GPT2", "Llama", "Mixtral"):
        model = model_of(family, CLASSES).to(dtype)
        assert not check_alone(model, CLASSES, plans[CLASSES], name=family, hidden=True)
    for family in ("XLNet", "ConvBert"):
        model = model_of(family, CLASSES, initializer_range=0.5).to(dtype)
        assert check_alone(model, CLASSES, plans[CLASSES], name=family)


def test_the_check_leaves_modes_numbers_and_weights_as_they_were(
    plans: dict[str, Plan],
) -> None:
    model = model_of("Bert", CLASSES).train()
    model.bert.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    state, legacy = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002  # BigBird seeds it
    assert not check_alone(model, CLASSES, plans[CLASSES], name="it", hidden=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy[1])  # noqa: NPY002  # as above
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.config.to_dict() == config
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_sparse_attention_that_short_documents_end_is_refused_for_long_ones(
    plans: dict[str, Plan],
) -> None:
    model = model_of("BigBird", CLASSES, block_size=2)
    with pytest.raises(ModelError, match="write original_full for attention_type"):
        check_alone(model, CLASSES, plans[CLASSES], name="it")
    full = model_of("BigBird", CLASSES, block_size=2, attention_type="original_full")
    assert not check_alone(full, CLASSES, plans[CLASSES], name="it")


@pytest.mark.parametrize("task", AUTO)
@pytest.mark.parametrize("fused", [False, True])
def test_pieces_of_one_length_are_joined_in_the_order_of_the_batch(
    task: str, fused: bool, plans: dict[str, Plan]
) -> None:
    """On a model that says the same either way."""
    model, made = model_of("GPT2" if task == "causal-lm" else "Bert", task), plans[task]
    batch = collate(made, made.docs[:9], {})
    head = plain_head(model, batch) if fused and task != CLASSES else None
    with torch.no_grad():
        wanted = say(model, task, batch, hidden=True, head=head)
        setattr(model, EQUAL, True)
        found = say(model, task, batch, hidden=True, head=head)
    assert found.logits_or_head.shape == wanted.logits_or_head.shape
    if head is None:
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-5, atol=1e-5)
    else:
        assert found.head is not None
        assert wanted.head is not None
        torch.testing.assert_close(found.head.hidden, wanted.head.hidden, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.mask, wanted.mask)
    assert len(found.hidden) == 3
    for one, other in zip(found.hidden, wanted.hidden, strict=True):
        torch.testing.assert_close(one[found.mask], other[found.mask], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, corpus: Path
) -> Callable[..., Cache]:
    """Builds a cache of a classifier of a family."""

    def made(family: str, **more: Any) -> Cache:
        folder = tmp_path_factory.mktemp(family)
        model = model_of(family, CLASSES, **{"num_labels": 3, **more})
        return build(
            corpus,
            teacher=save_teacher(folder / "teacher", tokenizer, model),
            task=CLASSES,
            out=folder / "cache.zarr",
            limit=40,
            max_length=40,
        )

    return made


@pytest.mark.parametrize(
    ("family", "more"),
    [("Qwen2", {"pad_token_id": 2, "vocab_size": 640}), ("GPT2", {}), ("XLNet", {}), ("FNet", {})],
    ids=["another pad", "no pad", "pooled at the end", "no mask"],
)
def test_a_cache_holds_what_the_teacher_says_of_each_document_and_spot_sees_it(
    family: str, more: dict[str, Any], make: Callable[..., Cache]
) -> None:
    """A spot check knows nothing of padding: it would see rows that padding has changed."""
    cache = make(family, **more)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(
        cache.manifest["teacher"]["source"]
    ).eval()
    rows = cache.batch(cache.plan.docs, ["logits/values"])["logits/values"]
    wanted = alone(teacher, CLASSES, cache.plan, cache.plan.docs)
    torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)
    spot = spot_check(cache.path, 12)
    assert not spot.findings
    assert all(figure.found < 1e-5 for figure in spot.figures)


def test_a_student_that_must_not_be_padded_trains_and_is_evaluated(
    make: Callable[..., Cache], corpus: Path, tmp_path: Path
) -> None:
    cache = make("Bert")
    config_of("FNet").save_pretrained(tmp_path / "config")
    few = tmp_path / "few.csv"
    few.write_text("".join(corpus.read_text("utf-8").splitlines(keepends=True)[:20]), "utf-8")
    outputs: list[str] = []

    class Heard:
        bar = staticmethod(quiet.bar)
        say = staticmethod(outputs.append)

    result = train(
        cache,
        recipe="kd",
        config=str(tmp_path / "config"),
        out=tmp_path / "student",
        eval_file=few,
        overrides=["training.max_steps=2", "training.use_cpu=true"],
        progress=Heard(),
    )
    assert result.metrics["evaluation"]["documents"]
    assert any(text.startswith("the student says something else of documents") for text in outputs)
    assert any(text.startswith("the model student says") for text in outputs)


def test_students_without_a_pad_take_one_that_hides_no_end_and_freezes_no_row(
    make: Callable[..., Cache], tmp_path: Path
) -> None:
    cache = make("Bert")
    config_of("Llama", pad_token_id=None, bos_token_id=2).save_pretrained(tmp_path / "llama")
    student = load_student(cache, StudentSpec(config=str(tmp_path / "llama")), seed=0)
    assert student.config.pad_token_id == cache.plan.config.tokenizer["pad_id"] == 0
    table = student.get_input_embeddings()
    assert table.padding_idx is None
    assert bool(table.weight[0].any())


def test_without_a_pad_token_a_student_takes_a_special_token_that_no_document_ends_with(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    """Documents end with the end token here, and begin with the other."""
    teacher = save_teacher(tmp_path / "teacher", tokenizer, model_of("GPT2", CLASSES))
    record = json.loads((teacher / "tokenizer_config.json").read_text("utf-8"))
    del record["pad_token"]
    (teacher / "tokenizer_config.json").write_text(json.dumps(record), "utf-8")
    cache = build(corpus, teacher=teacher, task=CLASSES, out=tmp_path / "cache.zarr", limit=16)
    for tokens, named in (({}, 2), ({"bos_token_id": 3}, None)):
        config_of("GPT2", **tokens).save_pretrained(tmp_path / "student")
        student = load_student(cache, StudentSpec(config=str(tmp_path / "student")), seed=0)
        assert student.config.pad_token_id == named
