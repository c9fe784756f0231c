"""Models of one vocabulary whose outputs differ in number are compared in those that both have."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.errors import ModelError
from kdcache.evaluation.evaluator import evaluate
from kdcache.losses import LOSSES
from kdcache.losses.kl import soft_and_hard
from kdcache.models import StudentSpec, load_student, plain_head
from kdcache.models.largest_id import require_ids
from kdcache.models.teacher import model_sizes
from kdcache.signals import SoftLabels
from kdcache.store import Cache, open_plan
from kdcache.training.objective import Objective
from kdcache.training.specs import cache_spec
from tests.activations import say
from tests.conftest import save_teacher

TASK: Any = "causal-lm"
TOKENS, TEACHER, FEWER, MORE = 600, 624, 608, 640
SIZES = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "initializer_range": 0.4}


def language_model(rows: int, seed: int, **options: Any) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=rows, bos_token_id=2, eos_token_id=3, **SIZES, **options
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, prose_file: Path
) -> Callable[[str], Cache]:
    """Caches of one teacher by their signal."""
    folder = tmp_path_factory.mktemp("padded")
    teacher = save_teacher(folder / "teacher", tokenizer, language_model(TEACHER, 1))
    options: dict[str, Any] = {"limit": 4, "max_length": 16, "part_tokens": 128}
    plan(prose_file, tokenizer=teacher, task=TASK, out=folder / "plan", **options)

    @functools.cache
    def of(signal: str) -> Cache:
        out = folder / signal.replace(":", "-")
        return build(folder / "plan", teacher=teacher, task=TASK, signals=[signal], out=out)

    return of


def student_of(rows: int) -> Any:
    return language_model(rows, rows, tie_word_embeddings=False)


def objective(cache: Cache, model: Any, **losses: Any) -> Objective:
    made = {kind: LOSSES[kind](**options) for kind, options in losses.items()}
    return Objective(made, cache_spec(cache, cache.plan.labelled), model_sizes(model.config, TASK))


def stored_tail(soft: SoftLabels, temperature: float) -> torch.Tensor:
    """The mass of p^(1/T) outside the ids, as far as it is stored."""
    known = {1.0: soft.tail_logmass, 2.0: soft.tail_stat}.get(temperature)
    return torch.zeros(len(soft.ids)).double() if known is None else known.double().exp()


def divergence(
    logits: torch.Tensor, soft: SoftLabels, temperature: float, tail: str
) -> torch.Tensor:
    """T^2 KL(teacher || student), rows' mean, in float64 by its definition."""
    shared = min(logits.shape[1], TEACHER)
    q = (logits[:, :shared] / temperature).softmax(-1)
    live = soft.ids >= 0
    inside = live & (soft.ids < shared)
    weight = (soft.logprobs.double() / temperature).exp()
    beyond = stored_tail(soft, temperature) + (weight * (live & ~inside)).sum(1)
    weight = weight * inside
    held = torch.zeros(len(q), shared + 1).double()
    held = held.scatter_add(1, soft.ids.where(inside, shared), weight)[:, :shared]
    support = torch.zeros(len(q), shared + 1, dtype=torch.bool)
    support = support.scatter(1, soft.ids.where(inside, shared), True)[:, :shared]
    rest = (q * ~support).sum(1)
    if tail == "renormalize":
        beyond = torch.zeros_like(beyond)
    if tail == "bucket":
        beyond = beyond.where(~support.all(1), 0.0)
    total = held.sum(1) + beyond
    if tail == "truncate" and temperature == 1:
        total = torch.ones_like(total)
    p, p_rest = held / total[:, None], beyond / total
    terms = torch.special.xlogy(p, p) - p * q.log()
    loss = terms.sum(1)
    if tail == "bucket":
        some = p_rest > 0
        loss = loss + torch.where(some, p_rest * (p_rest / rest.where(some, 1.0)).log(), 0.0)
    return temperature**2 * loss.mean()


CASES = [
    ("logits:dense", "bucket", 1.0),
    ("logits:dense", "bucket", 2.5),
    ("logits:dense", "truncate", 1.0),
    ("logits:dense", "truncate", 3.0),
    ("logits:topk,k=16,draws=8", "bucket", 1.0),
    ("logits:topk,k=16,draws=8", "bucket", 2.0),
    ("logits:topk,k=16,draws=8", "renormalize", 3.0),
    ("logits:topk,k=16,draws=8", "truncate", 1.0),
    ("logits:topk,k=16,draws=8", "truncate", 2.0),
    ("logits:topk,k=16,draws=8", "drawn", 1.0),
    ("logits:topk,k=612", "bucket", 2.0),
    ("logits:topk,k=624", "bucket", 3.0),
    ("logits:topk-small,k=16", "bucket", 2.0),
    ("logits:sampled,n=40", "bucket", 1.0),
    ("logits:sampled,n=40", "renormalize", 1.0),
    ("logits:hidden-head,dtype=fp32", "bucket", 1.5),
]


@pytest.mark.parametrize("rows", [FEWER, MORE])
@pytest.mark.parametrize(("signal", "tail", "temperature"), CASES)
def test_soft_and_hard_losses_are_those_of_the_shared_outputs(
    made: Callable[[str], Cache], signal: str, tail: str, temperature: float, rows: int
) -> None:
    cache, model = made(signal), student_of(rows)
    losses = {"kl": {"tail": tail, "temperature": temperature, "weight": 0.7}, "hard": {}}
    aim = objective(cache, model, **losses)
    batch = cache.batch(cache.plan.docs, aim.arrays)
    outputs = say(model, TASK, batch, hidden=False)
    outputs.logits.retain_grad()
    loss, terms = aim(outputs, batch)
    loss.backward()

    exact = outputs.logits.detach().double().requires_grad_()
    soft: Any = cache.signals["logits"].decode(batch, TEACHER)  # type: ignore[attr-defined]
    if tail == "drawn":
        soft = soft.with_drawn()
    kl = divergence(exact, soft, temperature, "bucket" if tail == "drawn" else tail)
    shared = min(rows, TEACHER)
    hard = torch.nn.functional.cross_entropy(exact[:, :shared], batch["labels"])
    (0.7 * kl + hard).backward()
    assert float(terms["kl"]) == pytest.approx(kl.item(), rel=2e-5)
    assert float(terms["hard"]) == pytest.approx(hard.item(), rel=2e-5)
    found, wanted = outputs.logits.grad, exact.grad
    torch.testing.assert_close(
        found.double(), wanted, rtol=0, atol=2e-5 * float(wanted.abs().max())
    )
    assert not found[:, shared:].any()

    head = plain_head(model, batch)
    fused, _ = aim(say(model, TASK, batch, hidden=False, head=head), batch)
    direct = model.lm_head.weight.grad.clone()
    model.zero_grad()
    fused.backward()
    torch.testing.assert_close(fused, loss.detach(), rtol=1e-4, atol=1e-6)
    scale = float(direct.abs().max())
    torch.testing.assert_close(model.lm_head.weight.grad, direct, rtol=0, atol=1e-4 * scale)
    assert not model.lm_head.weight.grad[shared:].any()


@pytest.mark.parametrize("rows", [FEWER, MORE])
def test_logits_are_compared_where_both_have_them(made: Callable[[str], Cache], rows: int) -> None:
    cache, model = made("logits:dense"), student_of(rows)
    aim = objective(cache, model, logit_mse={})
    batch = cache.batch(cache.plan.docs, aim.arrays)
    outputs = say(model, TASK, batch, hidden=False)
    loss, _ = aim(outputs, batch)
    shared = min(rows, TEACHER)
    apart = outputs.logits[:, :shared] - batch["logits/values"][:, :shared]
    assert loss.item() == pytest.approx(apart.double().square().mean().item(), rel=1e-5)
    assert f"compared in the {shared} that both have" in aim.notes[0]


def test_equal_outputs_are_compared_as_they_are(made: Callable[[str], Cache]) -> None:
    cache, model = made("logits:topk,k=16,draws=8"), student_of(TEACHER)
    aim = objective(cache, model, kl={"temperature": 2.0}, hard={})
    batch = cache.batch(cache.plan.docs, aim.arrays)
    outputs = say(model, TASK, batch, hidden=False)
    soft: Any = cache.signals["logits"].decode(batch, TEACHER)  # type: ignore[attr-defined]
    both, _, _ = soft_and_hard(
        outputs.logits, soft, temperature=2.0, labels=batch["labels"], hard_weight=1.0
    )
    loss, _ = aim(outputs, batch)
    assert torch.equal(loss, both)
    assert not aim.notes


@pytest.mark.parametrize("rows", [FEWER, MORE])
@pytest.mark.parametrize("signal", ["logits:dense", "logits:topk,k=16,draws=8"])
def test_agreement_is_that_of_the_shared_outputs(
    tmp_path: Path, tokenizer: Path, prose_file: Path, made: Any, signal: str, rows: int
) -> None:
    cache, model = made(signal), student_of(rows)
    folder = save_teacher(tmp_path / "student", tokenizer, model)
    found = evaluate(folder, prose_file, cache=cache, limit=4, max_length=16)["teacher_rows"]
    batch = cache.batch(cache.plan.docs, [name for name in cache.layouts if "logits" in name])
    soft: Any = cache.signals["logits"].decode(batch, TEACHER)
    logits = say(model, TASK, batch, hidden=False).logits.detach().double()
    wanted = divergence(logits, soft, 1.0, "bucket")
    assert found["divergence"] == pytest.approx(float(wanted), rel=1e-4)
    best = soft.ids.gather(1, soft.logprobs.argmax(1, keepdim=True))[:, 0]
    same = logits[:, :TEACHER].argmax(1) == best
    assert found["agreement"] == pytest.approx(float(same.double().mean()))


def with_image_token(tokenizer: Path, folder: Path) -> Path:
    """A tokenizer with one token more, as multimodal families share theirs with text models."""
    made = transformers.AutoTokenizer.from_pretrained(tokenizer)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    assert made.convert_tokens_to_ids("<image>") == TOKENS
    made.save_pretrained(folder)
    return folder


def test_a_tokenizer_may_have_tokens_that_no_document_has(
    tmp_path: Path, tokenizer: Path, prose_file: Path
) -> None:
    longer = with_image_token(tokenizer, tmp_path / "longer")
    teacher = save_teacher(tmp_path / "teacher", longer, language_model(TOKENS, 3))
    asked: dict[str, Any] = {"teacher": teacher, "task": TASK}
    cache = build(prose_file, out=tmp_path / "c", limit=3, **asked)
    load_student(cache, StudentSpec(checkpoint=str(teacher)), seed=0)
    plainer = save_teacher(tmp_path / "plainer", tokenizer, language_model(TOKENS, 4))
    load_student(cache, StudentSpec(checkpoint=str(plainer)), seed=0)
    evaluate(teacher, prose_file, cache=cache, limit=3)

    (tmp_path / "c.txt").write_text("one\ntwo\nthe <image> of it\n")
    with pytest.raises(
        ModelError, match=r"row 2 of the corpus .* holds token 600, and the teacher"
    ):
        build(tmp_path / "c.txt", out=tmp_path / "d", **asked)
    assert not (tmp_path / "d").exists()
    with pytest.raises(ModelError, match=r"row 2 .* holds token 600, and teacher has 600 tokens"):
        evaluate(teacher, tmp_path / "c.txt")


def test_a_student_needs_an_embedding_for_every_token_of_the_plan(
    tmp_path: Path, tokenizer: Path, made: Callable[[str], Cache]
) -> None:
    cache = made("logits:dense")
    highest = int(max(cache.plan.columns["tokens"][0 : cache.plan.rows["token"]]))
    for rows in (highest, highest + 1):
        language_model(rows, 1).config.save_pretrained(tmp_path)
        spec = StudentSpec(config=str(tmp_path))
        if rows == highest:
            match = (
                rf"row \d of the corpus .* holds token {highest}, and the student has {rows} tok"
            )
            with pytest.raises(ModelError, match=match):
                load_student(cache, spec, seed=0)
        else:
            load_student(cache, spec, seed=0)


def test_the_document_of_a_token_beyond_is_found_in_any_part(
    tmp_path: Path, masked_lm: Path
) -> None:
    words = json.loads((masked_lm / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    rare = next(w for w, i in words.items() if i > 590 and w.isalpha())
    lines = ["the first line of it"] * 40
    lines[33] = f"the {rare} of it"
    (tmp_path / "c.txt").write_text("\n".join(lines) + "\n")
    options: dict[str, Any] = {"max_length": 16, "part_tokens": 128, "mask_probability": 0.01}
    plan(tmp_path / "c.txt", tokenizer=masked_lm, task="masked-lm", out=tmp_path / "p", **options)
    made = open_plan(tmp_path / "p")
    assert made.parts > 1
    require_ids(made, words[rare] + 1, "it", "go")
    with pytest.raises(
        ModelError, match=rf"row 33 of the corpus .* holds token {words[rare]}, and"
    ):
        require_ids(made, words[rare], "it", "go")


def test_padding_beyond_a_vocabulary_without_its_tokenizer_is_bounded(
    tmp_path: Path, tokenizer: Path, prose_file: Path
) -> None:
    padded = save_teacher(tmp_path / "padded", tokenizer, language_model(TOKENS + 3000, 3))
    asked: dict[str, Any] = {"teacher": padded, "task": TASK, "limit": 2}
    build(prose_file, out=tmp_path / "c", **asked)
    own = Path(shutil.copytree(tokenizer, tmp_path / "apart"))
    for file in tokenizer.iterdir():
        (padded / file.name).unlink()
    with pytest.raises(
        ModelError, match=r"has 600 tokens, the teacher padded 3600: .*put its files"
    ):
        build(prose_file, tokenizer=own, out=tmp_path / "d", **asked)
