"""What a cache holds is what the teacher says, document by document, and nothing gets lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.special import log_softmax

from kdcache.building.builder import build, estimate
from kdcache.building.capture import FIDELITY_ROWS
from kdcache.building.describe import describe_bytes
from kdcache.building.planner import plan
from kdcache.errors import CacheError, ConfigError, MismatchError, ModelError
from kdcache.signals import DenseLogits, TopKLogits
from kdcache.store import Cache, open_cache
from tests.conftest import bert_config, save_teacher

TASK = "text-classification"
SIZES: dict[str, Any] = {"max_length": 48, "part_tokens": 512, "batch_tokens": 512}


class Watch:
    """A progress that keeps what it is told and interrupts, as Ctrl-C would, after some tokens."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.messages: list[str] = []
        self.done = 0
        self.stop_after = stop_after

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            if unit != "tokens":
                return
            self.done += done
            if self.stop_after is not None and self.done > self.stop_after:
                raise KeyboardInterrupt

        yield advance

    def say(self, message: str) -> None:
        self.messages.append(message)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def tokens_of(cache: Cache, doc: int) -> torch.Tensor:
    start, count = (
        cache.plan.per_document["doc_start"][doc],
        cache.plan.per_document["doc_len"][doc],
    )
    rows = slice(int(start), int(start + count))
    return torch.from_numpy(cache.plan.columns["tokens"][rows].astype(np.int64))[None]


def close(found: Any, wanted: Any, atol: float = 2e-4) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(wanted), atol=atol, rtol=1e-4)


@torch.no_grad()
def test_classifier_rows_are_the_teachers_own(
    cache: Cache, classifier: Path, sentences: list[Any]
) -> None:
    """Texts go through transformers one by one: no batch, no padding, no code of ours."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    for doc in cache.plan.docs[::3]:
        text = sentences[cache.plan.per_document["doc_id"][doc]].text
        inputs = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
        outputs = teacher(**inputs, output_hidden_states=True)
        close(cache.read("logits/values", np.array([doc])), outputs.logits)
        for layer in range(5):
            close(cache.hidden(layer, np.array([doc])).dense(), outputs.hidden_states[layer][:, 0])


def check_soft_labels(soft: Any, logits: torch.Tensor) -> None:
    """Ids, tail and decoded log-probabilities of rows against the teacher's logits."""
    truth = log_softmax(logits.double().numpy(), axis=1)
    k = soft.ids.shape[1]
    best = -np.sort(-truth, axis=1)[:, :k]
    picked = np.take_along_axis(truth, soft.ids.numpy(), 1)
    close(picked, best)
    close(soft.tail_logmass, np.log1p(-np.exp(best).sum(1)), atol=1e-3)
    # Half a step of the codes at this height, and a little for what the exact mass takes out.
    assert np.abs(soft.logprobs.double().numpy() - picked).max() < 0.07


@torch.no_grad()
def test_masked_rows_are_the_teachers_own(masked_cache: Cache, masked_lm: Path) -> None:
    teacher = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    per_document = masked_cache.plan.per_document
    for doc in masked_cache.plan.docs[::3]:
        outputs = teacher(input_ids=tokens_of(masked_cache, doc), output_hidden_states=True)
        start, count = int(per_document["masked_start"][doc]), int(per_document["masked_len"][doc])
        at = masked_cache.plan.columns["masked_position"][start : start + count].astype(np.int64)
        check_soft_labels(masked_cache.soft_labels(np.array([doc])), outputs.logits[0, at])
        for layer in (2, 4):
            wanted = outputs.hidden_states[layer][0, at]
            found = masked_cache.hidden(layer, np.array([doc])).dense()
            close(found, wanted, atol=float(wanted.abs().max()) / 200)


@torch.no_grad()
def test_causal_rows_are_the_teachers_own(causal_cache: Cache, causal_lm: Path) -> None:
    teacher = transformers.AutoModelForCausalLM.from_pretrained(causal_lm).eval()
    for doc in causal_cache.plan.docs[::2]:
        ids = tokens_of(causal_cache, doc)
        # The tokenizer makes type ids, so `teacher(**tokenizer(text))` would pass them too.
        types = torch.zeros_like(ids)
        outputs = teacher(input_ids=ids, token_type_ids=types, output_hidden_states=True)
        check_soft_labels(causal_cache.soft_labels(np.array([doc])), outputs.logits[0])
        for layer in (0, 4):
            wanted = outputs.hidden_states[layer][0]
            found = causal_cache.hidden(layer, np.array([doc])).dense()
            np.testing.assert_allclose(found, wanted, rtol=2**-7, atol=1e-3)


def test_regression_values_are_the_teachers_own(
    tmp_path: Path, regressor: Path, sentences: list[Any]
) -> None:
    lines = [f"{len(s.text)}.5\t{s.text}" for s in sentences[:20]]
    (tmp_path / "c.tsv").write_text("\n".join(["score\ttext", *lines]), encoding="utf-8")
    made = build(tmp_path / "c.tsv", teacher=regressor, task=TASK, out=tmp_path / "r", **SIZES)
    assert made.plan.config.label_kind == "regression"
    tokenizer = transformers.AutoTokenizer.from_pretrained(regressor)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(regressor).eval()
    for doc in made.plan.docs:
        text = sentences[made.plan.per_document["doc_id"][doc]].text
        inputs = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")
        with torch.no_grad():
            close(made.read("logits/values", np.array([doc])), teacher(**inputs).logits)
        assert made.plan.per_document["value"][doc] == len(text) + 0.5


def small(kind: str, tokenizer: Path) -> Any:
    """A teacher of another family, with the names that family gives its sizes."""
    vocab = len(transformers.AutoTokenizer.from_pretrained(tokenizer))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {"intermediate_size": 24, "max_position_embeddings": 66, "vocab_size": vocab}
    torch.manual_seed(5)
    if kind == "roberta":
        config = transformers.RobertaConfig(**sizes, **more, pad_token_id=0, type_vocab_size=2)
        return transformers.RobertaForMaskedLM(config)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, vocab_size=vocab)
        return transformers.DistilBertForMaskedLM(config)
    if kind == "electra":
        config = transformers.ElectraConfig(**sizes, **more, embedding_size=8)
        return transformers.ElectraForMaskedLM(config)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **more))
    config = transformers.GPTNeoXConfig(**sizes, **more)
    return transformers.GPTNeoXForCausalLM(config)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "electra", "llama", "neox"])
@torch.no_grad()
def test_teachers_of_other_families_fit(
    tmp_path: Path, prose_file: Path, tokenizer: Path, kind: str
) -> None:
    teacher = small(kind, tokenizer).eval()
    task: Any = "causal-lm" if kind in ("llama", "neox") else "masked-lm"
    made = build(
        prose_file,
        teacher=save_teacher(tmp_path / "t", tokenizer, teacher),
        task=task,
        out=tmp_path / "c",
        signals=["logits:dense", "hidden:layers=0-2,positions=all,dtype=fp32"],
        limit=6,
        max_length=32,
    )
    per_document = made.plan.per_document
    for doc in made.plan.docs:
        outputs = teacher(input_ids=tokens_of(made, doc), output_hidden_states=True)
        at: Any = slice(None)
        if task == "masked-lm":
            start, count = (
                int(per_document["masked_start"][doc]),
                int(per_document["masked_len"][doc]),
            )
            rows = slice(start, start + count)
            at = made.plan.columns["masked_position"][rows].astype(np.int64)
        close(made.read("logits/values", np.array([doc])), outputs.logits[0, at])
        for layer in (0, 2):
            close(made.hidden(layer, np.array([doc])).dense(), outputs.hidden_states[layer][0])


@torch.no_grad()
def test_fidelity_is_that_of_all_rows_where_they_are_few(
    masked_cache: Cache, masked_lm: Path
) -> None:
    found = masked_cache.fidelity
    rows = masked_cache.plan.selected
    assert 1024 < rows < FIDELITY_ROWS
    assert found["logits"]["rows"] == found["hidden"]["rows"] == rows
    teacher = transformers.AutoModelForMaskedLM.from_pretrained(masked_lm).eval()
    kl, same, errors, norms = [], [], {2: 0.0, 4: 0.0}, {2: 0.0, 4: 0.0}
    for doc in masked_cache.plan.docs:
        one = np.array([doc])
        outputs = teacher(input_ids=tokens_of(masked_cache, doc), output_hidden_states=True)
        start, count = (int(x[0]) for x in masked_cache.plan.spans(one, "selected"))
        at = masked_cache.plan.columns["masked_position"][start : start + count].astype(np.int64)
        truth = log_softmax(outputs.logits[0, at].double().numpy(), axis=1)
        soft = masked_cache.soft_labels(one)
        p = np.take_along_axis(truth, soft.ids.numpy(), 1)
        q = soft.logprobs.double().numpy()
        assert soft.tail_logmass is not None
        rest = np.log1p(-np.exp(p).sum(1)), soft.tail_logmass.double().numpy()
        kl += ((np.exp(p) * (p - q)).sum(1) + np.exp(rest[0]) * (rest[0] - rest[1])).tolist()
        same += (truth.argmax(1) == soft.ids[:, 0].numpy()).tolist()
        for layer in errors:
            wanted = outputs.hidden_states[layer][0, at].double().numpy()
            decoded = masked_cache.hidden(layer, one).dense().double().numpy()
            errors[layer] += float(((decoded - wanted) ** 2).sum())
            norms[layer] += float((wanted**2).sum())
    assert found["logits"]["kl_mean"] == pytest.approx(np.mean(kl), rel=0.01)
    assert found["logits"]["kl_max"] == pytest.approx(np.max(kl), rel=0.01)
    assert found["logits"]["kl_mean"] < 5e-4
    assert found["logits"]["top1_agreement"] == pytest.approx(np.mean(same), abs=2 / rows)
    for layer, error in errors.items():
        relative = (error / norms[layer]) ** 0.5
        assert found["hidden"]["relative_error"][f"L{layer}"] == pytest.approx(relative, rel=0.01)


def test_fidelity_of_many_rows_is_sampled(causal_cache: Cache, cache: Cache) -> None:
    assert causal_cache.plan.tokens > FIDELITY_ROWS
    assert causal_cache.fidelity["logits"]["rows"] == FIDELITY_ROWS
    assert 0 < causal_cache.fidelity["hidden"]["relative_error"]["L4"] < 2**-8
    exact = cache.fidelity["logits"]
    assert (exact["kl_mean"], exact["value_error_max"], exact["top1_agreement"]) == (0, 0, 1)
    assert set(cache.fidelity["hidden"]["relative_error"].values()) == {0.0}


def test_a_build_from_a_plan_is_the_build_from_its_corpus(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    given: dict[str, Any] = {"teacher": classifier, "task": TASK, "batch_tokens": 512}
    sizes: dict[str, Any] = {"max_length": 48, "part_tokens": 512, "limit": 90}
    plan(corpus, tokenizer=classifier, task=TASK, out=tmp_path / "plan", **sizes)
    build(tmp_path / "plan", **given, out=tmp_path / "a")
    build(corpus, **given, **sizes, out=tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    with pytest.raises(ConfigError, match="is a plan: it fixes max_length already"):
        build(tmp_path / "plan", **given, out=tmp_path / "c", max_length=48)
    with pytest.raises(ConfigError, match="is a plan for text-classification, not causal-lm"):
        build(tmp_path / "plan", teacher=classifier, task="causal-lm", out=tmp_path / "c")


def test_an_estimate_is_exact_and_writes_nothing(
    tmp_path: Path,
    prose_file: Path,
    masked_lm: Path,
    masked_cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    made = estimate(
        prose_file,
        teacher=masked_lm,
        task="masked-lm",
        signals=["logits:topk,k=16", "hidden:layers=2-4,positions=masked,group=16"],
        max_length=48,
        part_tokens=4096,
        views=2,
    )
    assert list(tmp_path.iterdir()) == []
    assert made.plan.sha256 == masked_cache.plan.sha256
    told = describe_bytes(made.plan, made.signals, made.shape)
    stored = [path for path in masked_cache.path.rglob("c/*") if path.is_file()]
    stored += [path for path in masked_cache.path.rglob("c/*/0") if path.is_file()]
    arrays = [path for path in stored if "files" not in path.parts]
    assert told["total"] == sum(path.stat().st_size for path in arrays)


@pytest.mark.parametrize("kept", [True, False])
def test_the_teachers_weights_are_kept_on_request(
    tmp_path: Path, corpus: Path, classifier: Path, kept: bool
) -> None:
    made = build(
        corpus,
        teacher=classifier,
        task=TASK,
        out=tmp_path / "c",
        keep_teacher_weights=kept,
        limit=9,
    )
    assert ("teacher/model.safetensors" in made.files) == kept
    assert {"teacher/config.json", "tokenizer/tokenizer.json"} <= set(made.files)
    made.extract(tmp_path / "t", list(made.files))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "t")
    own = transformers.AutoTokenizer.from_pretrained(classifier)
    assert tokenizer("Some text.") == own("Some text.")
    if kept:
        auto = transformers.AutoModelForSequenceClassification
        weights = auto.from_pretrained(classifier).state_dict()
        for name, tensor in auto.from_pretrained(tmp_path / "t").state_dict().items():
            assert torch.equal(tensor, weights[name])


def test_each_task_has_a_default_signal(
    tmp_path: Path, prose_file: Path, classifier: Path, masked_lm: Path, causal_lm: Path
) -> None:
    tasks: dict[Any, Path] = {TASK: classifier, "masked-lm": masked_lm, "causal-lm": causal_lm}
    for task, teacher in tasks.items():
        made = build(prose_file, teacher=teacher, task=task, out=tmp_path / task, limit=3)
        wanted = DenseLogits() if task == TASK else TopKLogits(k=64)
        assert made.signals == {"logits": wanted}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, corpus: Path, classifier: Path) -> Cache:
    """A build of many parts that nobody interrupts."""
    out = tmp_path_factory.mktemp("unbroken") / "c"
    signals = ["logits:dense", "hidden:layers=2,dtype=int8"]
    return build(corpus, teacher=classifier, task=TASK, out=out, signals=signals, **SIZES)


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, corpus: Path, classifier: Path, unbroken: Cache
) -> None:
    given: dict[str, Any] = {"teacher": classifier, "task": TASK, "out": tmp_path / "c", **SIZES}
    given["signals"] = ["logits:dense", "hidden:layers=2,dtype=int8"]
    docs = [unbroken.plan.part_docs(part) for part in range(unbroken.plan.parts)]
    two = sum(unbroken.plan.extent(part, "token") for part in docs[:2])
    stopped = Watch(stop_after=two)
    with pytest.raises(KeyboardInterrupt, match=f"2 of {len(docs)} parts are committed; run the"):
        build(corpus, progress=stopped, **given)
    broken = open_cache(tmp_path / "c")
    assert not broken.complete
    assert broken.committed == [0, 1]
    assert broken.fidelity == {}
    going = Watch()
    assert build(corpus, progress=going, **given).complete
    assert going.messages == [
        f"resuming {tmp_path / 'c'}: 2 of {len(docs)} parts are committed; going on with part 2"
    ]
    assert going.done == unbroken.plan.tokens - two
    assert files_of(tmp_path / "c") == files_of(unbroken.path)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_complete_cache_is_left_as_it_is(corpus: Path, classifier: Path, unbroken: Cache) -> None:
    before = files_of(unbroken.path)
    watch = Watch()
    signals = ["logits:dense", "hidden:layers=2,dtype=int8"]
    build(
        corpus,
        teacher=classifier,
        task=TASK,
        out=unbroken.path,
        signals=signals,
        progress=watch,
        **SIZES,
    )
    parts = unbroken.plan.parts
    assert watch.messages == [
        f"{unbroken.path} is complete: {parts} of {parts} parts; nothing to do"
    ]
    assert (watch.done, files_of(unbroken.path)) == (0, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("signals", [["logits:dense"], ["hidden:layers=4,positions=all"]])
def test_outputs_that_are_not_finite_are_named_and_never_stored(
    tmp_path: Path,
    corpus: Path,
    sentences: list[Any],
    tokenizer: Path,
    classifier: Path,
    value: float,
    signals: list[str],
) -> None:
    encode = transformers.AutoTokenizer.from_pretrained(tokenizer)
    ids = encode([s.text for s in sentences], truncation=True, max_length=48)["input_ids"]
    holders = {t: [i for i, doc in enumerate(ids) if t in doc] for t in range(5, 600)}
    token, (row,) = next((t, where) for t, where in holders.items() if len(where) == 1)
    teacher = transformers.AutoModelForSequenceClassification.from_pretrained(classifier)
    teacher.get_input_embeddings().weight.data[token] = value
    source = save_teacher(tmp_path / "t", tokenizer, teacher)
    given: dict[str, Any] = {"task": TASK, "out": tmp_path / "c", "signals": signals, **SIZES}
    with pytest.raises(ModelError, match=f"not finite for row {row} of the corpus"):
        build(corpus, teacher=source, **given)
    broken = open_cache(tmp_path / "c")
    doc = int(np.flatnonzero(broken.plan.per_document["doc_id"] == row)[0])
    part = doc // broken.plan.rows["document"]
    assert broken.committed == list(range(part))
    for layout in broken.layouts.values():
        assert not any((broken.path / layout.key(s)).exists() for s in layout.part_shards(part))
        for shard in range(part * len(layout.part_shards(0))):
            assert (broken.path / layout.key(shard)).exists()
    with pytest.raises(MismatchError, match=r"teacher\.weights_sha256"):
        build(corpus, teacher=classifier, **given)


def test_a_path_through_a_file_is_refused(tmp_path: Path, corpus: Path, classifier: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "c", tmp_path / "file" / "deep" / "c"):
        with pytest.raises(CacheError, match="part of the path is a file; choose another folder"):
            build(corpus, teacher=classifier, task=TASK, out=out)
    with pytest.raises(CacheError, match="exists and is not a kdcache cache; choose another"):
        build(corpus, teacher=classifier, task=TASK, out=tmp_path / "file", limit=9)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(corpus: Path, classifier: Path) -> None:
    if not Path("/sys/kernel").is_dir():
        pytest.skip("this system has no /sys")
    with pytest.raises(CacheError, match=r"cannot write /sys/c: .*choose"):
        build(corpus, teacher=classifier, task=TASK, out="/sys/c")


def test_the_current_folder_cannot_be_the_cache(
    tmp_path: Path, corpus: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a store puts a new folder in the place of an empty one, which here we stand on."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(CacheError, match="is the current folder; choose a folder in it"):
        build(corpus, teacher=classifier, task=TASK, out=".", limit=9)
    assert build(corpus, teacher=classifier, task=TASK, out="c", limit=9).complete
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_an_empty_folder_and_a_link_to_one_can_become_the_cache(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    for name in ("empty", "target"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("target")
    for name in ("empty", "link"):
        build(corpus, teacher=classifier, task=TASK, out=tmp_path / name, limit=9)
    assert (tmp_path / "link").is_symlink()
    assert open_cache(tmp_path / "target").complete
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "target"]


def test_a_folder_of_someone_else_is_left_alone(
    tmp_path: Path, corpus: Path, classifier: Path, cache: Cache
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("text")
    with pytest.raises(CacheError, match="mine exists and is not a kdcache cache"):
        build(corpus, teacher=classifier, task=TASK, out=tmp_path / "mine", limit=9)
    assert files_of(tmp_path / "mine") == {"thesis.tex": b"text"}
    plan(corpus, tokenizer=classifier, task=TASK, out=tmp_path / "plan", limit=9)
    with pytest.raises(
        CacheError, match="plan holds a plan, not a cache; choose another output folder"
    ):
        build(corpus, teacher=classifier, task=TASK, out=tmp_path / "plan", limit=9)


def test_where_the_teacher_lies_does_not_matter(
    tmp_path: Path, corpus: Path, classifier: Path, unbroken: Cache
) -> None:
    """Weights identify a teacher: the same ones elsewhere go on with the same cache."""
    moved = Path(shutil.copytree(classifier, tmp_path / "elsewhere" / "classifier"))
    watch = Watch()
    signals = ["logits:dense", "hidden:layers=2,dtype=int8"]
    build(
        corpus,
        teacher=moved,
        task=TASK,
        out=unbroken.path,
        signals=signals,
        progress=watch,
        **SIZES,
    )
    assert "nothing to do" in watch.messages[0]


def test_padding_is_not_for_reading(cache: Cache) -> None:
    padding = np.flatnonzero(cache.plan.per_document["doc_len"] == 0)
    assert len(padding)
    for docs in ([padding[0]], [0, padding[-1]], [len(cache.plan.per_document["doc_len"])], [-1]):
        with pytest.raises(ConfigError, match=f"row {docs[-1]} holds no document; `plan.docs`"):
            cache.read("logits/values", np.array(docs))


def test_a_batch_size_of_nothing_is_refused(cache: Cache) -> None:
    with pytest.raises(ConfigError, match="1 document or more; got size=0"):
        cache.batches(0)


@pytest.mark.parametrize("arrays", [None, []])
def test_batches_hold_every_document_once(cache: Cache, arrays: list[str] | None) -> None:
    seen = []
    for batch in cache.batches(32, seed=3, epoch=1, arrays=arrays):
        seen += batch["docs"].tolist()
        if arrays is None:
            stored = cache.read("logits/values", batch["docs"].numpy())
            np.testing.assert_array_equal(batch["logits/values"], stored)
    assert sorted(seen) == cache.plan.docs.tolist()
    again = [d for b in cache.batches(32, seed=3, epoch=1, arrays=[]) for d in b["docs"].tolist()]
    other = [d for b in cache.batches(32, seed=3, epoch=2, arrays=[]) for d in b["docs"].tolist()]
    assert again == seen != other


def test_a_fitting_head_is_needed(tmp_path: Path, corpus: Path, tokenizer: Path) -> None:
    bare = transformers.BertModel(bert_config(tokenizer))
    source = save_teacher(tmp_path / "t", tokenizer, bare)
    with pytest.raises(ModelError, match=r"no trained weights for classifier\.bias.*train it on"):
        build(corpus, teacher=source, task=TASK, out=tmp_path / "c")
    assert not (tmp_path / "c").exists()
