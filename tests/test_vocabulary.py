"""Students that keep some of the vocabulary: made, trained, resumed, scored and shipped."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import kdcache
from kdcache.building.trimmed_cache import TrimmedCache, left_out, token_counts
from kdcache.errors import ConfigError, DamageError, MismatchError, ModelError
from kdcache.models import StudentSpec, load_student, load_tokenizer
from kdcache.models.kept_tokens import FILE, KeptTokens, kept_beside
from kdcache.models.token_map import cached_tokenizer
from kdcache.models.trimmed_tokenizer import choose_tokens
from kdcache.progress import quiet
from kdcache.signals import LOGITS, Tap
from kdcache.store import Cache, open_cache
from kdcache.training.own_loop import make_objective, make_student
from kdcache.training.train import train
from kdcache_cli.main import main
from tests.conftest import SIZES, Lines, save_teacher, write_csv
from tests.kinds_of_tokenizers import unigram
from tests.test_trainer import Watcher, log_of, stopped_and_resumed

TASK = "text-classification"
STEPS = ["training.max_steps=6", "training.logging_steps=1", "training.learning_rate=1e-3"]
CPU: dict[str, Any] = {"device": "cpu"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vocabulary")


@pytest.fixture(scope="module")
def cache(place: Path, classifier: Path, corpus: Path) -> Cache:
    return kdcache.build(
        str(corpus),
        teacher=classifier,
        task=TASK,
        out=place / "c.zarr",
        signals=["logits:dense", "hidden:layers=0-2-4,positions=all,dtype=fp32"],
        max_length=24,
        limit=50,
        part_tokens=512,
        keep_teacher_weights=True,
    )


@pytest.fixture(scope="module")
def kept(cache: Cache) -> KeptTokens:
    return choose_tokens(cached_tokenizer(cache), token_counts(cache.plan))


@pytest.fixture(scope="module")
def trimmed(cache: Cache, kept: KeptTokens) -> TrimmedCache:
    return TrimmedCache(cache, kept)


def test_batches_have_the_tokens_by_their_new_numbers(
    cache: Cache, trimmed: TrimmedCache, kept: KeptTokens
) -> None:
    docs = cache.plan.docs[[9, 0, 33]]
    ours, theirs = trimmed.batch(docs), cache.batch(docs)
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"input_ids"}:
        assert torch.equal(ours[name], theirs[name])
    assert np.array_equal(kept.ids[ours["input_ids"]], theirs["input_ids"])
    assert trimmed.plan.tokens == cache.plan.tokens
    assert trimmed.plan.sha256 != cache.plan.sha256 == open_cache(cache.path).plan.sha256
    assert trimmed.original is cache
    own = trimmed.plan.columns["tokens"]
    assert own[0:7].dtype == own.dtype == np.int32
    assert int(token_counts(trimmed.plan).sum()) == trimmed.plan.tokens
    assert left_out(cache.plan, kept) == (0, 0)


def test_counts_are_those_of_the_documents(cache: Cache) -> None:
    counts = np.zeros(cache.plan.config.tokenizer["vocab_size"], np.int64)
    for doc in cache.plan.docs:
        batch = cache.batch(np.array([doc]), [])
        np.add.at(counts, batch["input_ids"][batch.mask].numpy(), 1)
    assert cache.plan.parts > 1
    assert np.array_equal(token_counts(cache.plan), counts)


def test_ids_beyond_the_vocabulary_are_damage(cache: Cache, kept: KeptTokens) -> None:
    short = TrimmedCache(cache, kept)
    column: Any = short.plan.columns["tokens"]
    column._numbers = column._numbers[:40]
    with pytest.raises(DamageError, match="beyond what there can be"):
        short.batch(cache.plan.docs[:4])


def roberta(size: int, **more: Any) -> Any:
    made = {"max_position_embeddings": 64, "vocab_size": size, "num_labels": 3, **more}
    return transformers.RobertaConfig(**{**SIZES, **made})


FAMILIES: dict[str, Callable[[int], Any]] = {
    "bert": lambda size: transformers.BertConfig(**{**SIZES, "vocab_size": size}),
    "roberta with the pad at 0": lambda size: roberta(size, pad_token_id=0),
    "roberta with the pad at 7": lambda size: roberta(size, pad_token_id=7),
    "albert": lambda size: transformers.AlbertConfig(
        **{**SIZES, "vocab_size": size, "embedding_size": 8}
    ),
    "distilbert": lambda size: transformers.DistilBertConfig(
        vocab_size=size, dim=32, n_layers=2, n_heads=4, hidden_dim=64
    ),
    "electra": lambda size: transformers.ElectraConfig(
        **{**SIZES, "vocab_size": size, "embedding_size": 16}
    ),
    "gpt2": lambda size: transformers.GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0
    ),
    "bart": lambda size: transformers.BartConfig(
        vocab_size=size,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=3,
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_student_says_what_it_says_with_all_its_tokens(
    family: str, cache: Cache, tmp_path: Path
) -> None:
    size = cache.plan.config.tokenizer["vocab_size"]
    config = FAMILIES[family](size)
    config.save_pretrained(tmp_path / "config")
    also = {config.pad_token_id}
    counts = token_counts(cache.plan)
    chosen = choose_tokens(cached_tokenizer(cache), counts, also=also)
    fewer = TrimmedCache(cache, chosen)
    spec = StudentSpec(config=str(tmp_path / "config"))
    whole, ours = (load_student(one, spec, seed=4).eval() for one in (cache, fewer))
    text = ours.config.get_text_config()
    assert text.vocab_size == chosen.rows == len(ours.get_input_embeddings().weight) < size
    assert text.pad_token_id == chosen.number(config.pad_token_id)
    docs = cache.plan.docs[:12]
    taps = [LOGITS, Tap("hidden")]
    with torch.no_grad():
        said, expected = (
            kdcache.run(model, one.batch(docs, []), taps, task=TASK)
            for model, one in ((ours, fewer), (whole, cache))
        )
    for tap, value in expected.values.items():
        assert float((said[tap] - value).abs().max()) <= 1e-6 * max(1, float(value.abs().max()))
    table = sum(1 for _ in ours.parameters())
    assert table == sum(1 for _ in whole.parameters())  # what was tied is
    ours.save_pretrained(tmp_path / "s")
    again = type(ours).from_pretrained(tmp_path / "s").eval()
    with torch.no_grad():
        third = kdcache.run(again, fewer.batch(docs, []), taps, task=TASK)
    assert torch.equal(third[LOGITS], said[LOGITS])


@pytest.mark.parametrize(
    "way",
    [
        {"init_from_teacher": [1, 3]},
        {"student": "static:embedding=8"},
        {"student": "bilstm:embeddings=teacher,hidden=8"},
    ],
    ids=["layers", "static", "bilstm"],
)
def test_a_student_of_the_teacher_or_of_kdcaches_own_has_the_rows_that_are_kept(
    way: dict[str, Any], cache: Cache, trimmed: TrimmedCache, kept: KeptTokens
) -> None:
    whole, ours = (make_student(one, seed=3, **way).eval() for one in (cache, trimmed))
    assert ours.config.vocab_size == kept.rows
    docs = cache.plan.docs[:9]
    with torch.no_grad():
        said, expected = (
            kdcache.run(model, one.batch(docs, []), [LOGITS], task=TASK)[LOGITS]
            for model, one in ((ours, trimmed), (whole, cache))
        )
    assert torch.allclose(said, expected, rtol=0, atol=1e-6)


def test_losses_have_the_gradients_that_they_have_with_all_tokens(
    cache: Cache, trimmed: TrimmedCache, kept: KeptTokens
) -> None:
    docs = cache.plan.docs[[2, 5, 7, 11]]
    grads = []
    for one in (cache, trimmed):
        student = make_student(one, init_from_teacher=[2, 4], seed=1).eval()
        objective = make_objective(one, "tinybert", student, ["stages=[]", *LOSSES])
        batch = one.batch(docs, objective.arrays)
        loss, _ = objective(kdcache.run(student, batch, objective.taps(), task=TASK), batch)
        loss.backward()
        grads.append(student.get_input_embeddings().weight.grad)
    assert torch.allclose(grads[0][torch.from_numpy(kept.ids)], grads[1], rtol=1e-5, atol=1e-7)
    assert float(grads[1].abs().sum()) > 0


LOSSES = ["losses.kl.weight=1", "losses.hidden.weight=1", "losses.hidden.layer_map=0:0,2:4"]


@pytest.mark.slow
def test_a_run_is_resumed_scored_shipped_and_compared(
    cache: Cache, kept: KeptTokens, corpus: Path, classifier: Path, tmp_path: Path
) -> None:
    command = f"train {cache.path} --recipe kd --init-from-teacher 2-4 --vocabulary corpus"
    settings = [word for one in STEPS for word in ("--set", one)]
    more = ["--device", "cpu", "--quiet", "--dev-split", "20%", "--eval", str(corpus)]
    more += ["--eval-teacher", str(classifier)]
    folder = tmp_path / "s"
    assert main([*command.split(), *settings, *more, "--out", str(folder)]) == 0
    own = load_tokenizer(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.vocab_size == kept.rows == own.vocab_size
    beside = kept_beside(folder)
    assert beside is not None
    assert beside.sha256 == kept.sha256
    note = json.loads((folder / "cache.json").read_text("utf-8"))
    assert note["kept_tokens"] == {"rows": kept.rows, "sha256": kept.sha256}
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    again = kdcache.evaluate(folder, corpus, cache=cache, teacher=classifier, by="label", **CPU)
    for name in ("accuracy", "teacher_rows"):
        assert metrics["evaluation"][name] == again[name]
    assert again["teacher_rows"]["documents"] >= 45
    longest = cache.plan.config.max_length
    alone = kdcache.evaluate(classifier, corpus, max_length=longest, **CPU)
    for side in (again, metrics["evaluation"]):  # it reads them by its own tokenizer
        assert side["teacher"]["cross_entropy"] == pytest.approx(alone["cross_entropy"], rel=1e-6)
    drop = again["slices"]["label"]["all"]["drop"]["value"]
    assert drop == pytest.approx(alone["accuracy"] - again["accuracy"])
    assert metrics["dev"]["teacher"]["source"] == "run: classifier"
    beside_teacher = kdcache.compare(folder, cache=cache, **CPU)
    assert beside_teacher["documents"] == cache.plan.documents
    some: dict[str, Any] = {"limit": cache.plan.documents, **CPU}
    of_file = kdcache.compare(folder, corpus, teacher=classifier, **some)
    for name in ("agreement", "both_right", "lost", "divergence"):
        assert of_file[name] == pytest.approx(beside_teacher[name], abs=1e-5)
    pipe = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    assert pipe("returns the email message")[0]["score"] > 0
    pytest.importorskip("onnxruntime")
    shipped = kdcache.ship(folder, tmp_path / "shipped", int8=True, progress=quiet)
    assert shipped
    options: dict[str, Any] = {"recipe": "kd", "init_from_teacher": [2, 4], "overrides": STEPS}
    options |= {"vocabulary": "corpus", **CPU}
    whole, _, told = stopped_and_resumed(cache, tmp_path, **options)
    keeps = f"the student keeps {kept.rows} of {len(kept.numbers)} tokens"
    assert any(keeps in line for line in told)
    plain = {name: value for name, value in options.items() if name != "vocabulary"}
    unlike = log_of(train(cache, out=tmp_path / "all", **plain).folder)
    for ours, theirs in zip(log_of(whole.folder), unlike, strict=True):
        if "loss" in theirs:  # dropout aside, which is drawn after the student is made
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.2)


def test_texts_of_a_file_are_kept_too_and_another_one_is_told(
    cache: Cache, kept: KeptTokens, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    old = cached_tokenizer(cache).plain
    words = [token for token in sorted(old.get_vocab()) if token.isalpha() and len(token) > 3]
    left = next(word for word in words if kept.number(old.get_vocab()[word]) is None)
    file.write_text(f"\n{left}\n", "utf-8")
    options: dict[str, Any] = {"recipe": "kd", "init_from_teacher": [2], "vocabulary": file, **CPU}
    stop = Watcher({3: lambda: signal.raise_signal(signal.SIGINT)})
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(cache, out=out, overrides=STEPS, progress=stop, **options)
    file.write_text("", "utf-8")
    with pytest.raises(MismatchError, match="kept_tokens"):
        train(cache, out=out, overrides=STEPS, resume=True, **options)
    file.write_text(left, "utf-8")
    done = train(cache, out=out, overrides=STEPS, resume=True, **options)
    assert left in load_tokenizer(done.folder).plain.get_vocab()


def test_a_number_reads_what_is_left_out_as_unknown_and_says_so(
    cache: Cache, kept: KeptTokens, corpus: Path, tmp_path: Path
) -> None:
    told = Lines()
    dev = tmp_path / "dev.csv"
    dev.write_text("".join(corpus.read_text("utf-8").splitlines(keepends=True)[:9]), "utf-8")
    options: dict[str, Any] = {"recipe": "kd", "init_from_teacher": [2], "dev": dev, **CPU}
    with pytest.raises(ConfigError, match="no room for the") as caught:
        train(cache, out=tmp_path / "s", overrides=STEPS, vocabulary=9, **options)
    least = int(str(caught.value).rpartition("give ")[2].split()[0])
    done = train(
        cache,
        out=tmp_path / "s",
        overrides=[*STEPS, f"student.vocabulary={(least + kept.rows) // 2}"],
        progress=told,
        **options,
    )
    line = next(line for line in told.messages if "are read as the unknown one" in line)
    some = kept_beside(done.folder)
    assert some is not None
    assert least <= some.rows < kept.rows
    lost = left_out(cache.plan, some)
    assert f"{lost.tokens:,} tokens of the documents" in line
    assert f"cuts {lost.documents:,} of {cache.plan.documents:,} documents otherwise" in line
    fewer = TrimmedCache(cache, some)
    batch, plain = fewer.batch(cache.plan.docs), cache.batch(cache.plan.docs)
    unknown = load_tokenizer(done.folder).plain.unk_token_id
    out = torch.from_numpy(some.numbers)[plain["input_ids"]] < 0
    assert int(out.sum()) == lost.tokens > 0
    assert bool((batch["input_ids"][out] == unknown).all())
    assert kdcache.evaluate(done.folder, corpus, cache=cache, **CPU)["documents"] > 0


def refused(*args: Any, match: str, **options: Any) -> None:
    values: dict[str, Any] = {"recipe": "kd", "vocabulary": "corpus", **options}
    with pytest.raises(ConfigError, match=match):
        train(*args, **values)


def test_what_does_not_go_together_is_refused(
    cache: Cache, masked_lm: Path, prose_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    words = kdcache.build(
        prose_file, teacher=masked_lm, task="masked-lm", out=tmp_path / "m.zarr", limit=8
    )
    layers: dict[str, Any] = {"init_from_teacher": [1], "out": out}
    refused(words, match="over the vocabulary", recipe="mlm-kd", **layers)
    refused(cache, match="no such file", **{**layers, "vocabulary": tmp_path / "none.txt"})
    refused(cache, match=r"student\.vocabulary", **{**layers, "vocabulary": 0})
    refused(cache, match=r"student\.vocabulary", **{**layers, "vocabulary": True})
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    refused(cache, match="no file of texts", **{**layers, "vocabulary": tmp_path / "bytes"})
    refused(cache, match="set the same field", overrides=["student.vocabulary=5"], **layers)
    both = ["student.tokenizer=x"]
    refused(cache, match=r"student\.tokenizer", student="static", out=out, overrides=both)
    module = make_student(cache, student="static").student
    refused(cache, match="module of your own", student=module, out=out)
    mixed = ['inputs={ kind = "smooth" }']
    refused(cache, match=r"inputs\.kind=smooth", overrides=mixed, **layers)
    assert not out.exists()


def test_a_student_that_reads_ids_elsewhere_too_is_refused(trimmed: TrimmedCache) -> None:
    class Counting(transformers.BertForSequenceClassification):
        def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
            found = super().forward(input_ids=input_ids, **more)
            found.logits = found.logits + input_ids.float().mean(1, keepdim=True)
            return found

    from kdcache.models.trimmed_model import trim

    torch.manual_seed(0)
    config = transformers.BertConfig(**{**SIZES, "vocab_size": 600, "num_labels": 3})
    with pytest.raises(ModelError, match="elsewhere"):
        trim(Counting(config), trimmed)


def test_heads_of_several_caches_keep_the_tokens_of_all(
    cache: Cache, corpus: Path, classifier: Path, place: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later.csv"
    lines = corpus.read_text("utf-8").splitlines(keepends=True)
    later.write_text("".join([lines[0], *lines[-30:]]), "utf-8")
    options: dict[str, Any] = {"teacher": classifier, "task": TASK, "max_length": 24}
    other = kdcache.build(later, out=tmp_path / "o.zarr", signals=["logits:dense"], **options)
    done = train(
        {"one": cache, "two": other},
        recipe="kd",
        init_from_teacher=[2],
        out=tmp_path / "s",
        overrides=STEPS,
        vocabulary="corpus",
        **CPU,
    )
    found = [kept_beside(done.folder / name) for name in ("one", "two")]
    used = (token_counts(cache.plan) + token_counts(other.plan)) > 0
    for kept in found:
        assert kept is not None
        assert not (kept.numbers[used] < 0).any()
    assert kdcache.evaluate(done.folder / "two", later, cache=other, **CPU)["documents"] == 30


def test_a_copy_of_the_cache_reads_the_same(trimmed: TrimmedCache) -> None:
    import pickle

    docs = trimmed.plan.docs[:3]
    again = pickle.loads(pickle.dumps(trimmed))
    assert torch.equal(again.batch(docs)["input_ids"], trimmed.batch(docs)["input_ids"])


@pytest.mark.parametrize("rows", [20_002, pytest.param(250_002, marks=pytest.mark.slow)])
def test_a_student_like_xlm_r_shrinks_by_nine_tenths(
    rows: int, sentences: list[Any], tmp_path: Path, corpus: Path
) -> None:
    texts = [one.text for one in sentences]
    fill = rows - len(load_tokenizer(unigram(texts, tmp_path / "small")).plain)
    more = [(f"▁{number:x}", -20.0) for number in range(16**6, 16**6 + fill)]
    folder = unigram(texts, tmp_path / "t", more)
    config = transformers.XLMRobertaConfig(
        vocab_size=rows,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=514,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=3,
        initializer_range=0.2,
    )
    torch.manual_seed(1)
    teacher = transformers.XLMRobertaForSequenceClassification(config)
    total = sum(one.numel() for one in teacher.parameters())
    assert teacher.get_input_embeddings().weight.numel() > 0.96 * total
    save_teacher(tmp_path / "teacher", folder, teacher)
    options: dict[str, Any] = {"teacher": tmp_path / "teacher", "task": TASK, "max_length": 32}
    cache = kdcache.build(corpus, out=tmp_path / "c.zarr", limit=40, **options)
    shutil.rmtree(tmp_path / "t")
    done = train(
        cache,
        recipe="kd",
        init_from_teacher=[1],
        out=tmp_path / "s",
        overrides=["training.max_steps=1"],
        vocabulary="corpus",
        **CPU,
    )
    made = transformers.AutoModelForSequenceClassification.from_pretrained(done.folder)
    assert sum(one.numel() for one in made.parameters()) < 0.1 * total
    assert made.config.pad_token_id == 1
    old, new = load_tokenizer(tmp_path / "teacher").plain, load_tokenizer(done.folder).plain
    for text in texts[:40]:
        short = {"truncation": True, "max_length": 32}
        assert new(text, **short).tokens() == old(text, **short).tokens()
    assert (done.folder / FILE).stat().st_size < 1.1e6


def test_pairs_of_texts_have_their_token_types(
    cache: Cache, classifier: Path, sentences: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "pairs.csv"
    rows = [(a.text[:60], b.text[:60], a.package) for a, b in pairwise(sentences[:25])]
    write_csv(file, [*rows, ("", "x", "email")], ("one", "two", "label"))
    options: dict[str, Any] = {"teacher": classifier, "task": TASK, "max_length": 96}
    pairs = kdcache.build(file, out=tmp_path / "c", text_columns=["one", "two"], **options)
    made: dict[str, Any] = {"recipe": "kd", "init_from_teacher": [2, 4], **CPU}
    done = train(pairs, out=tmp_path / "s", overrides=STEPS, vocabulary="corpus", **made)
    found = kdcache.evaluate(done.folder, file, cache=pairs, **CPU)
    assert found["teacher_rows"]["documents"] == pairs.plan.documents == 25


def test_tags_of_words_are_learned_where_they_stand(
    tokenizer: Path, sentences: list[Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    names = {"id2label": {0: "O", 1: "B-X"}, "label2id": {"O": 0, "B-X": 1}}
    config = transformers.BertConfig(**{**SIZES, "vocab_size": 600, **names})
    model = transformers.BertForTokenClassification(config)
    teacher = save_teacher(tmp_path / "teacher", tokenizer, model)
    file = tmp_path / "tags.jsonl"
    words = [one.text.split()[:9] for one in sentences[:30]]
    rows = [{"tokens": one, "tags": ["O", *["B-X"] * (len(one) - 1)]} for one in words]
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    options: dict[str, Any] = {"teacher": teacher, "task": "token-classification"}
    tags = kdcache.build(file, out=tmp_path / "c", max_length=32, **options)
    made: dict[str, Any] = {"recipe": "kd", "init_from_teacher": [2, 4], "dev_split": 0.2, **CPU}
    done = train(tags, out=tmp_path / "s", overrides=STEPS, vocabulary="corpus", **made)
    found = kdcache.evaluate(done.folder, file, cache=tags, **CPU)
    assert found["teacher_rows"]["documents"] == 30


@pytest.mark.slow
def test_a_run_of_stages_goes_on_between_two(
    cache: Cache, kept: KeptTokens, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"recipe": "annealing-kd", "init_from_teacher": [2, 4], **CPU}
    options |= {"vocabulary": "corpus", "overrides": STEPS}
    seen: list[int] = []

    def in_the_second() -> None:
        seen.append(3)
        if len(seen) == 2:
            signal.raise_signal(signal.SIGINT)

    _, resumed, _ = stopped_and_resumed(cache, tmp_path, in_the_second, **options)
    stage = next((resumed.folder / "stages").iterdir())
    assert load_tokenizer(stage).vocab_size == kept.rows
