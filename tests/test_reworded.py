"""A student that reads the texts of a cache in a vocabulary of its own, word by word."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import kdcache
from kdcache.corpora.standard_library import prose
from kdcache.errors import ConfigError, KdcacheError, MismatchError, ModelError
from kdcache.losses.pairs import Pairs
from kdcache.models import load_tokenizer
from kdcache.plans.batch import STUDENT_WORDS, TEACHER_WORDS, WORD_DOCS
from kdcache.progress import quiet
from kdcache.signals import Tap
from kdcache.store import Cache, open_cache
from kdcache.training.own_loop import make_objective, make_student
from kdcache.training.reworded import RewordedCache, aligned
from kdcache.training.train import train
from kdcache.training.word_cuts import WordCuts
from kdcache_cli.main import main
from tests.test_trainer import Watcher, log_of, stopped_and_resumed

TASK = "text-classification"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
STEPS = ["training.max_steps=6", "training.logging_steps=1", "training.learning_rate=1e-3"]


def with_decoder(source: Path, out: Path) -> Path:
    """A model folder whose tokenizer can read its tokens back, as all that are published can."""
    shutil.copytree(source, out)
    file = out / "tokenizer.json"
    record = json.loads(file.read_text("utf-8"))
    record["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    file.write_text(json.dumps(record, ensure_ascii=False), "utf-8")
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("words")


@pytest.fixture(scope="module")
def teacher(place: Path, classifier: Path) -> Path:
    return with_decoder(classifier, place / "teacher")


@pytest.fixture(scope="module")
def tiny(place: Path, tokenizer: Path) -> Path:
    """A tokenizer of few pieces."""
    made = Backend(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    made.train_from_iterator(
        prose()[:200],
        trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False),
    )
    cls, sep = (made.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    made.post_processor = processors.BertProcessing(("[SEP]", sep), ("[CLS]", cls))
    made.decoder = decoders.WordPiece()
    named = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    options = {f"{name}_token": token for name, token in named.items()}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **options,
    )
    fast.save_pretrained(place / "tiny")
    return place / "tiny"


@pytest.fixture(scope="module")
def config(place: Path, tiny: Path, teacher: Path) -> str:
    size = len(transformers.AutoTokenizer.from_pretrained(tiny))
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = transformers.AutoConfig.from_pretrained(teacher, vocab_size=size, **sizes)
    made.save_pretrained(place / "config")
    return str(place / "config")


@pytest.fixture(scope="module")
def cache(place: Path, teacher: Path, corpus: Path) -> Cache:
    return kdcache.build(
        str(corpus),
        teacher=teacher,
        task=TASK,
        out=place / "c.zarr",
        signals=["logits:dense", "hidden:layers=0-2-4,positions=all,dtype=fp32"],
        max_length=32,
        limit=70,
        part_tokens=1024,
    )


@pytest.fixture(scope="module")
def reworded(cache: Cache, tiny: Path) -> RewordedCache:
    return RewordedCache(cache, tiny, quiet)


TEXTS = ["the module returns an iterator", "a class of 12 objects", "it"]


def byte_level(place: Path) -> Path:
    """A tokenizer whose words begin with the blank before them."""
    made = Backend(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.train_from_iterator(
        prose()[:100],
        trainers.BpeTrainer(vocab_size=400, special_tokens=["<pad>"], show_progress=False),
    )
    made.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>")
    fast.save_pretrained(place)
    return place


@pytest.mark.parametrize("kind", ["pieces", "bytes"])
def test_words_are_read_back_from_tokens(kind: str, tiny: Path, tmp_path: Path) -> None:
    loaded = load_tokenizer(tiny if kind == "pieces" else byte_level(tmp_path))
    cuts = WordCuts(loaded)
    ids = [loaded.plain(text)["input_ids"] for text in TEXTS]
    lens = np.array([len(one) for one in ids])
    flat = np.concatenate([np.asarray(one, np.int64) for one in ids])
    assert cuts.words(flat, lens) == [text.split() for text in TEXTS]
    numbers = np.split(cuts.numbers(flat, lens), np.cumsum(lens)[:-1])
    for text, one, tokens in zip(TEXTS, numbers, ids, strict=True):
        for number, word in enumerate(text.split()):
            own = [token for token, of in zip(tokens, one, strict=True) if of == number]
            assert loaded.plain.decode(own).strip() == word
        special = np.isin(tokens, loaded.special_ids)
        assert np.array_equal(one == -1, special)


def test_an_unknown_word_is_a_word(tiny: Path) -> None:
    loaded = load_tokenizer(tiny)
    ids = np.asarray(loaded.plain("a 漢 class")["input_ids"])
    assert WordCuts(loaded).words(ids, np.array([len(ids)])) == [["a", "[UNK]", "class"]]


def test_words_that_one_side_has_cut_off_are_of_neither() -> None:
    theirs = np.array([-1, 0, 0, 1, 2, -1, -1, 0, 1, -1])
    mine = np.array([-1, 0, 1, 1, -1, 1, 1])
    found = aligned(theirs, np.array([6, 4]), mine, np.array([5, 2]))
    places, own, docs = (one.tolist() for one in found)
    assert places == [-1, 0, 0, 1, -1, -1, -1, -1, 2, -1]
    assert own == [-1, 0, 1, 1, -1, 2, 2]
    assert docs == [0, 0, 1]
    nothing = aligned(np.array([-1]), np.array([1]), np.array([-1, -1]), np.array([2]))
    assert [one.tolist() for one in nothing] == [[-1], [-1, -1], []]


def test_a_batch_has_the_students_tokens_and_the_words_of_both(
    cache: Cache, reworded: RewordedCache, teacher: Path, tiny: Path
) -> None:
    docs = cache.plan.docs[[9, 0, 33]]
    batch, plain = reworded.batch(docs), cache.batch(docs)
    theirs, mine = (transformers.AutoTokenizer.from_pretrained(path) for path in (teacher, tiny))
    assert batch["input_ids"].max() < len(mine)
    assert batch.tokens == int(batch["attention_mask"].sum()) == len(batch[STUDENT_WORDS])
    assert len(batch[TEACHER_WORDS]) == plain.tokens
    assert torch.equal(batch["labels"], plain["labels"])
    assert torch.equal(batch["logits/values"], plain["logits/values"])
    ours, known = batch["input_ids"][batch.mask], plain["input_ids"][plain.mask]
    words = len(batch[WORD_DOCS])
    assert words > 20
    for word in range(words):
        one, other = (
            tokenizer.decode(ids[batch[name] == word])
            for tokenizer, ids, name in (
                (theirs, known, TEACHER_WORDS),
                (mine, ours, STUDENT_WORDS),
            )
        )
        assert one == other or "[UNK]" in one + other
    assert batch[WORD_DOCS].tolist() == sorted(batch[WORD_DOCS].tolist())
    longest = reworded.plan.per_document["doc_len"].max()
    assert longest == cache.plan.config.max_length  # some are cut off, and their words dropped
    assert int((batch[TEACHER_WORDS] >= 0).sum()) < plain.tokens - 2 * len(docs)


def test_the_plan_is_that_of_the_cache_in_other_tokens(
    cache: Cache, reworded: RewordedCache, tiny: Path, tmp_path: Path
) -> None:
    plan = reworded.plan
    assert np.array_equal(plan.docs, cache.plan.docs)
    assert plan.parts == cache.plan.parts > 1
    assert plan.tokens > cache.plan.tokens
    assert plan.sha256 != cache.plan.sha256 == open_cache(cache.path).plan.sha256
    assert RewordedCache(cache, tiny, quiet).plan.sha256 == plan.sha256
    reworded.extract(tmp_path, [name for name in reworded.files if name.startswith("tokenizer/")])
    kept = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert kept.get_vocab() == transformers.AutoTokenizer.from_pretrained(tiny).get_vocab()


def test_the_loss_compares_means_of_the_tokens_of_words(
    reworded: RewordedCache, config: str
) -> None:
    student = make_student(reworded, config=config).eval()
    change = ["losses.kl.weight=0", "losses.words.layer_map=1:2", "losses.words.weight=3"]
    objective = make_objective(reworded, "mixed-vocab", student, change)
    docs = reworded.plan.docs[[2, 5, 7, 11]]
    batch = reworded.batch(docs, objective.arrays)
    found = kdcache.run(student, batch, objective.taps(), task=TASK)
    loss, terms = objective(found, batch)
    loss.backward()
    assert student.get_input_embeddings().weight.grad.abs().sum() > 0
    assert float(loss.detach()) == pytest.approx(3 * float(terms["words"]))
    linear: Any = objective.projections["words_1"]
    with torch.no_grad():
        ours = linear(found[Tap("hidden", 1)])[batch.mask]
    theirs = reworded.stored(docs, Tap("hidden", 2)).dense()
    of_docs: list[list[float]] = [[] for _ in docs]
    for word, doc in enumerate(batch[WORD_DOCS].tolist()):
        one = ours[batch[STUDENT_WORDS] == word].mean(0)
        other = theirs[batch[TEACHER_WORDS] == word].mean(0)
        of_docs[doc].append(float((one - other).detach().square().mean()))
    wanted = np.mean([np.mean(one) for one in of_docs])
    assert float(terms["words"]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("positions", ["cls", "mean"])
def test_what_documents_are_to_the_teacher_is_made_of_its_own_tokens(
    cache: Cache, reworded: RewordedCache, config: str, positions: str
) -> None:
    student = make_student(reworded, config=config).eval()
    change = [f"losses.hidden.positions={positions}", "losses.hidden.layer_map=1:2"]
    objective = make_objective(reworded, "hidden", student, change)
    docs = reworded.plan.docs[[2, 5, 7, 11]]
    batch, plain = reworded.batch(docs, objective.arrays), cache.batch(docs)
    (match,) = objective.bound["hidden"].matches
    found = kdcache.run(student, batch, objective.taps(), task=TASK)
    pairs = Pairs(objective.cache, batch, found, project=lambda name, rows: rows)
    theirs = cache.stored(docs, Tap("hidden", 2)).dense().split(plain.mask.sum(1).tolist())
    wanted = torch.stack([one[0] if positions == "cls" else one.mean(0) for one in theirs])
    assert torch.allclose(pairs.teacher_of(match).dense(), wanted, atol=1e-6)


@pytest.mark.slow
def test_a_student_is_trained_resumed_and_scored_with_its_own_tokenizer(
    cache: Cache, config: str, tiny: Path, tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    command = f"train {cache.path} --recipe mixed-vocab --config {config} --device cpu --quiet"
    settings = [*STEPS, f"student.tokenizer={tiny}"]
    more = [word for one in settings for word in ("--set", one)]
    dev = ["--dev-split", "20%", "--eval", str(corpus), "--eval-teacher", str(classifier)]
    assert main([*command.split(), *more, *dev, "--out", str(tmp_path / "s")]) == 0
    log = log_of(tmp_path / "s")
    assert {name for name in log[0] if name.startswith("loss_")} == {"loss_kl", "loss_words"}
    assert log[-1]["loss_words"] < log[0]["loss_words"]
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "s")
    assert own.get_vocab() == transformers.AutoTokenizer.from_pretrained(tiny).get_vocab()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "s")
    assert model.config.vocab_size == len(own)
    metrics = json.loads((tmp_path / "s" / "metrics.json").read_text("utf-8"))
    again = kdcache.evaluate(tmp_path / "s", corpus, device="cpu")
    assert metrics["evaluation"]["accuracy"] == again["accuracy"]
    with pytest.raises(ModelError, match=r"let it read by its own \(student\.tokenizer=FOLDER\)"):
        train(cache, recipe="kd", student=tmp_path / "s", out=tmp_path / "on", overrides=STEPS)
    options: dict[str, Any] = {"recipe": "mixed-vocab", "config": config, "overrides": settings}
    _, _, told = stopped_and_resumed(cache, tmp_path, **options)
    assert any("texts are read back from the teacher's" in line for line in told)


def test_documents_of_a_dev_file_are_not_trained_on_however_their_texts_read_back(
    cache: Cache, config: str, tiny: Path, corpus: Path, tmp_path: Path
) -> None:
    cased = tmp_path / "cased"
    shutil.copytree(tiny, cased)
    record = json.loads((cased / "tokenizer.json").read_text("utf-8"))
    record["normalizer"]["lowercase"] = False  # a file's capitals stay, those of the cache are lost
    (cased / "tokenizer.json").write_text(json.dumps(record), "utf-8")
    lines = corpus.read_text("utf-8").splitlines(keepends=True)
    some = tmp_path / "dev.csv"
    some.write_text("".join(lines[:31]), "utf-8")
    options: dict[str, Any] = {"recipe": "mixed-vocab", "config": config, "dev": some}
    settings = [*STEPS, f"student.tokenizer={cased}"]
    theirs = train(cache, init_from_teacher=[1], dev=some, out=tmp_path / "k", overrides=STEPS)
    ours = train(cache, out=tmp_path / "s", overrides=settings, **options)
    left = [run.metrics["dev"]["left_out"] for run in (theirs, ours)]
    assert left[0] == left[1] >= 30
    scores = [run.metrics["dev"]["teacher"] for run in (theirs, ours)]
    assert scores[0] == scores[1] is not None
    test = tmp_path / "test.csv"
    test.write_text("".join(lines[:21]), "utf-8")
    with pytest.raises(ConfigError, match="dev"):
        train(cache, out=tmp_path / "e", overrides=settings, eval_file=test, **options)


def test_a_run_does_not_go_on_with_another_tokenizer_in_its_place(
    cache: Cache, config: str, tiny: Path, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path / "t")
    options: dict[str, Any] = {
        "recipe": "mixed-vocab",
        "config": config,
        "overrides": [*STEPS, f"student.tokenizer={tmp_path / 't'}"],
        "out": tmp_path / "run",
    }
    stop = Watcher({3: lambda: signal.raise_signal(signal.SIGINT)})
    with pytest.raises(KeyboardInterrupt):
        train(cache, progress=stop, **options)
    file = tmp_path / "t" / "tokenizer.json"
    record = json.loads(file.read_text("utf-8"))
    record["normalizer"]["lowercase"] = False
    file.write_text(json.dumps(record), "utf-8")
    with pytest.raises(MismatchError, match=r"cache\.words"):
        train(cache, resume=True, **options)


def test_students_of_kdcaches_own_have_the_vocabulary_too(
    cache: Cache, tiny: Path, tmp_path: Path
) -> None:
    change = [*STEPS, f"student.tokenizer={tiny}"]
    result = train(
        cache, recipe="kd", student="static:embedding=8", out=tmp_path / "s", overrides=change
    )
    opened = kdcache.open_student(result.folder)
    size = len(transformers.AutoTokenizer.from_pretrained(tiny))
    assert opened.embeddings.num_embeddings == size


def test_what_cannot_be_reworded_is_refused(
    cache: Cache,
    masked_cache: Cache,
    classifier: Path,
    teacher: Path,
    corpus: Path,
    config: str,
    tiny: Path,
    tmp_path: Path,
) -> None:
    def refused(error: type[KdcacheError], match: str, call: Callable[[], object]) -> None:
        with pytest.raises(error, match=match) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "s").exists()

    def training(*more: str, of: Cache = cache, recipe: str = "mixed-vocab", **options: Any) -> Any:
        given = {"config": config} | options
        change = [f"student.tokenizer={tiny}", *more]
        return lambda: train(of, recipe=recipe, out=tmp_path / "s", overrides=change, **given)

    refused(ConfigError, "documents of which a student says one thing", training(of=masked_cache))
    refused(
        ConfigError,
        "starts from the teacher's embeddings has its tokens",
        training(config=None, init_from_teacher="1-2"),
    )
    refused(
        ConfigError,
        "starts from the teacher's embeddings",
        training(recipe="kd", config=None, student="bilstm:embeddings=teacher"),
    )
    refused(ConfigError, "losses.hidden compares token by token", training(recipe="hidden"))
    refused(ConfigError, "inputs.kind=smooth reads", training("inputs=smooth", recipe="kd"))
    refused(
        ConfigError,
        "both have one vocabulary: set student.tokenizer",
        training("student.tokenizer=", "losses.words.layer_map=2:2", config=str(teacher)),
    )
    refused(ModelError, "holds no tokenizer", training(f"student.tokenizer={tmp_path}"))
    refused(ConfigError, "student.tokenizer is a folder", training("student.tokenizer=3"))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("a,b,label\n" + "the module,a class,email\n" * 12, "utf-8")
    options: dict[str, Any] = {"teacher": classifier, "task": TASK, "max_length": 16}
    two = kdcache.build(
        str(pairs),
        out=tmp_path / "two.zarr",
        text_columns=["a", "b"],
        label_column="label",
        **options,
    )
    refused(ConfigError, "documents of one text", training(of=two))
    plain = kdcache.build(str(corpus), out=tmp_path / "plain.zarr", limit=12, **options)
    refused(ModelError, "whose tokenizer has no decoder", training(of=plain))
