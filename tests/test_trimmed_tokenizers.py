"""Tokenizers with the tokens that some texts use cut these, and others of them, into the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken

from kdcache.corpora.standard_library import prose
from kdcache.errors import ConfigError, ModelError
from kdcache.models import Tokenizer, load_tokenizer
from kdcache.models.kept_tokens import FILE, KeptTokens, kept_beside
from kdcache.models.piece_kinds import BYTES
from kdcache.models.trimmed_tokenizer import choose_tokens, trimmed_tokenizer
from tests.kinds_of_tokenizers import MADE

KINDS = ("wordpiece", *MADE)
TEXTS = [text[:160] for text in prose()[100:140]]


@pytest.fixture(scope="module")
def loaded(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    place, texts = tmp_path_factory.mktemp("kinds"), prose()[:200]
    made = {kind: make(texts, place / kind) for kind, make in MADE.items()}
    return {
        kind: load_tokenizer(folder) for kind, folder in {"wordpiece": tokenizer, **made}.items()
    }


def counts_of(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    ids = [number for one in tokenizer.plain(texts)["input_ids"] for number in one]
    return np.bincount(ids, minlength=tokenizer.vocab_size)


def pieces(tokenizer: Tokenizer, text: str, pair: str | None = None) -> list[str]:
    return tokenizer.plain(text, pair).tokens()


def recombined(texts: list[str], count: int) -> list[str]:
    words = sorted({word for text in texts for word in text.split()[1:]})
    rng = np.random.default_rng(7)
    first = [text.split()[0] for text in texts]  # some kinds cut a word without a blank otherwise
    more = [rng.choice(words, rng.integers(0, 12)) for _ in range(count)]
    return [" ".join([str(rng.choice(first)), *some]) for some in more]


def scrambled(texts: list[str], count: int) -> list[str]:
    characters = sorted({character for text in texts for character in text})
    rng = np.random.default_rng(8)
    return ["".join(rng.choice(characters, 20)) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_and_1000_others_of_their_words_are_cut_into_the_same_pieces(
    kind: str, loaded: dict[str, Tokenizer]
) -> None:
    old = loaded[kind]
    kept = choose_tokens(old, counts_of(old, TEXTS))
    new = trimmed_tokenizer(old, kept)
    assert len(new.plain) == new.vocab_size == kept.rows < 0.95 * old.vocab_size
    for text in [*TEXTS, *recombined(TEXTS, 1000), "", " "]:
        assert pieces(new, text) == pieces(old, text)
        moved = [kept.number(token) for token in old.plain(text)["input_ids"]]
        assert new.plain(text)["input_ids"] == moved
    one, other = old.plain(*TEXTS[:2]), new.plain(*TEXTS[:2])
    assert other.tokens() == one.tokens()
    assert other.encodings[0].type_ids == one.encodings[0].type_ids
    named = old.plain.special_tokens_map
    assert new.plain.special_tokens_map == named
    assert new.plain.padding_side == old.plain.padding_side
    assert [new.plain.decode(new.plain(t)["input_ids"]) for t in TEXTS[:9]] == [
        old.plain.decode(old.plain(t)["input_ids"]) for t in TEXTS[:9]
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_of_their_characters_can_be_written(
    kind: str, loaded: dict[str, Tokenizer]
) -> None:
    old = loaded[kind]
    new = trimmed_tokenizer(old, choose_tokens(old, counts_of(old, TEXTS)))
    unknown = old.plain.unk_token
    for text in scrambled(TEXTS, 300):
        before, after = pieces(old, text), pieces(new, text)
        assert after.count(unknown) == before.count(unknown)
        if unknown not in before:
            written = ["".join(one).replace("##", "") for one in (before, after)]
            assert written[0] == written[1]


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback"])
def test_characters_never_seen_are_written_in_bytes(
    kind: str, loaded: dict[str, Tokenizer]
) -> None:
    old = loaded[kind]
    new = trimmed_tokenizer(old, choose_tokens(old, counts_of(old, TEXTS[:2])))
    for text in ("漢字 ¿qué? 🎈", "\n\t\x00"):
        assert new.plain.decode(new.plain(text, add_special_tokens=False)["input_ids"]).strip() == (
            old.plain.decode(old.plain(text, add_special_tokens=False)["input_ids"]).strip()
        )
    if kind == "byte-fallback":
        assert set(BYTES) <= new.plain.get_vocab().keys()


def test_rows_of_bpe_are_those_that_its_pieces_are_merged_from_too(
    loaded: dict[str, Tokenizer],
) -> None:
    old = loaded["byte-level"]
    word = max(old.plain.get_vocab(), key=len)
    number = old.plain.get_vocab()[word]
    counts = np.zeros(old.vocab_size, np.int64)
    counts[number] = 1
    kept = choose_tokens(old, counts)
    own = {
        token for token, number in old.plain.get_vocab().items() if kept.number(number) is not None
    }
    between = {token for token in own if 1 < len(token) < len(word) and token[0] != "<"}
    assert between
    assert all(token in word for token in between)
    text = old.plain.decode([number])
    new = trimmed_tokenizer(old, kept)
    assert pieces(new, text) == pieces(old, text)
    merges = json.loads(new.plain.backend_tokenizer.to_str())["model"]["merges"]
    assert len(merges) == len(between) + 1


def test_unknown_characters_cost_what_they_did(loaded: dict[str, Tokenizer]) -> None:
    old = loaded["unigram"]
    new = trimmed_tokenizer(old, choose_tokens(old, counts_of(old, TEXTS[:3])))
    lowest = [min(score for _, score in one.parts["model"]["vocab"]) for one in (old, new)]
    assert lowest[0] == lowest[1]
    for text in recombined(["漢 字漢 a漢b the漢", *TEXTS[:3]], 200):
        assert pieces(new, text) == pieces(old, text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_keeps_the_tokens_that_are_used_most(
    kind: str, loaded: dict[str, Tokenizer]
) -> None:
    old = loaded[kind]
    counts = counts_of(old, TEXTS)
    every = choose_tokens(old, counts)
    with pytest.raises(ConfigError, match="no room for the") as caught:
        choose_tokens(old, counts, 1)
    least = int(str(caught.value).rpartition("give ")[2].split()[0].replace(",", ""))
    with pytest.raises(ConfigError):
        choose_tokens(old, counts, least - 1)
    assert choose_tokens(old, counts, least).rows == least
    most = (least + every.rows) // 2
    some = choose_tokens(old, counts, most)
    assert least < some.rows <= most
    assert set(some.ids) < set(every.ids)
    left = np.setdiff1d(every.ids, some.ids)
    own = np.setdiff1d(some.ids, choose_tokens(old, counts, least).ids)
    if kind in ("wordpiece", "unigram"):  # whose pieces need no others
        assert counts[left].max() <= counts[own].min()
    assert np.array_equal(choose_tokens(old, counts, 10**6).numbers, every.numbers)
    assert trimmed_tokenizer(old, some).vocab_size == some.rows


def test_added_tokens_stay_wherever_they_were(tokenizer: Path, tmp_path: Path) -> None:
    sides = {"padding_side": "left", "truncation_side": "left"}
    plain = transformers.AutoTokenizer.from_pretrained(tokenizer, **sides)
    plain.add_tokens(["<user>", AddedToken("kdcache", single_word=True)])
    plain.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    plain.save_pretrained(tmp_path / "t")
    old = load_tokenizer(tmp_path / "t")
    texts = ["<turn> <user> the kdcache of", "kdcaches<user><turn>[MASK]", *TEXTS[:4]]
    kept = choose_tokens(old, counts_of(old, [text.replace("<turn>", "") for text in texts]))
    new = trimmed_tokenizer(old, kept)
    for text in texts:
        assert pieces(new, text) == pieces(old, text)
    added = new.plain.get_added_vocab()
    assert added.keys() == old.plain.get_added_vocab().keys()
    assert sorted(added.values())[-3:] == list(range(kept.rows - 3, kept.rows))
    for one in (old, new):
        assert (one.plain.padding_side, one.plain.truncation_side) == ("left", "left")
    assert new.special_ids.tolist() == [kept.number(token) for token in old.special_ids]


def test_a_kind_that_is_not_known_is_refused(tokenizer: Path) -> None:
    class Other(Tokenizer):
        @property
        def parts(self) -> dict[str, object]:
            return {**super().parts, "post_processor": {"type": "Unheard"}}

    old = load_tokenizer(tokenizer)
    odd = Other(old.plain, "odd")
    kept = choose_tokens(odd, counts_of(old, TEXTS))
    with pytest.raises(ModelError, match="Unheard"):
        trimmed_tokenizer(odd, kept)


def test_what_is_kept_is_a_file_beside_the_student(tmp_path: Path) -> None:
    kept = KeptTokens.of([7, 0, 3], 9)
    assert kept.numbers.tolist() == [0, -1, -1, 1, -1, -1, -1, 2, -1]
    assert kept.ids.tolist() == [0, 3, 7]
    assert kept.rows_of(7).tolist() == [0, 3]
    assert [kept.number(token) for token in (None, -1, 3, 4, 9)] == [None, None, 1, None, None]
    assert kept_beside(tmp_path) is None
    kept.save(tmp_path)
    found = kept_beside(tmp_path)
    assert found is not None
    assert found.sha256 == kept.sha256
    np.save(tmp_path / FILE, np.array([1, 0], np.int32))
    with pytest.raises(ModelError, match="does not number"):
        kept_beside(tmp_path)
    (tmp_path / FILE).write_bytes(b"no array")
    with pytest.raises(ModelError, match="damaged"):
        kept_beside(tmp_path)
    shutil.rmtree(tmp_path)
