"""What is damaged is made again to the byte, by the teacher of then; its outputs can be held
against what it says."""

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

from kdcache.building.builder import build
from kdcache.building.planner import plan
from kdcache.errors import ConfigError, MismatchError, ModelError
from kdcache.maintenance.merging import merge
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.maintenance.verifying import find_damage, verify
from kdcache.store import Cache
from kdcache.store.format.array_reader import encode_shard
from kdcache.store.io.fingerprints import shard_fingerprint
from kdcache_cli.main import main
from tests.damage import copy_of, files_of, flip, forge_commit, forge_completion, swap

COMMIT = "commits/000001/zarr.json"


class Tokens:
    """Counts the tokens the teacher is run on."""

    def __init__(self) -> None:
        self.done = 0

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            self.done += done if unit == "tokens" else 0

        yield advance

    def say(self, message: str) -> None:
        raise AssertionError(message)


DAMAGE: dict[str, list[Callable[[Path], object]]] = {
    "rows": [
        lambda root: flip(root / "logits/logprobs/c/0/0", 4321),
        lambda root: (root / "logits/tail_stat/c/1").write_bytes(b"short"),
        lambda root: (root / "hidden/L2/scale/c/0/0").write_bytes(b""),
        lambda root: (root / "hidden/L4/codes/c/1/0").unlink(),
        lambda root: swap(root / "logits/ids/c/0/0", root / "logits/ids/c/1/0"),
    ],
    "records": [
        lambda root: flip(root / COMMIT, 900),
        lambda root: flip(root / "complete/zarr.json", 700),
    ],
    "commit gone": [lambda root: shutil.rmtree(root / "commits/000001")],
    "completion gone": [lambda root: shutil.rmtree(root / "complete")],
    "metadata": [
        lambda root: flip(root / "logits/ids/zarr.json", 555),
        lambda root: (root / "hidden/zarr.json").unlink(),
    ],
    "manifest": [lambda root: flip(root / "zarr.json", 3000)],
    "manifest gone": [lambda root: (root / "zarr.json").unlink()],
    "plan's commit": [lambda root: flip(root / "commits/plan/zarr.json", 9000)],
    "files": [
        lambda root: flip(root / "files/tokenizer/tokenizer.json/c/0", 5000),
        lambda root: (root / "files/tokenizer/tokenizer.json/zarr.json").unlink(),
    ],
    "plan": [
        lambda root: flip(root / "tokens/c/1", 100),
        lambda root: (root / "plan/masked_position/c/0").unlink(),
        lambda root: swap(root / "plan/doc_start/c/0", root / "plan/masked_start/c/0"),
    ],
}
DAMAGE["everywhere"] = [
    hit for name in ("rows", "records", "metadata", "files", "plan") for hit in DAMAGE[name]
]


@pytest.mark.parametrize("name", DAMAGE)
def test_a_repaired_cache_is_byte_identical(
    masked_cache: Cache, prose_file: Path, tmp_path: Path, name: str
) -> None:
    root = copy_of(masked_cache, tmp_path)
    whole = files_of(root)
    for hit in DAMAGE[name]:
        hit(root)
    now = files_of(root)
    changed = {key for key, data in whole.items() if now.get(key) != data}
    assert len(changed) >= len(DAMAGE[name])
    done = repair(root, corpus=prose_file)
    assert done.left == ()
    assert {finding.object for finding in done.repaired} <= changed
    assert files_of(root) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["copy.zarr"]


def spoil(root: Path, name: str) -> None:
    """The first of the damage of that name."""
    DAMAGE[name][0](root)


def test_only_the_damaged_part_is_run_again(masked_cache: Cache, tmp_path: Path) -> None:
    root = copy_of(masked_cache, tmp_path)
    flip(root / "logits/logprobs/c/1/0", 77)
    tokens = Tokens()
    assert repair(root, progress=tokens).left == ()
    docs = masked_cache.plan.part_docs(1)
    assert tokens.done == masked_cache.plan.extent(docs, "token") < masked_cache.plan.tokens
    untouched = Tokens()
    assert repair(root, progress=untouched).repaired == ()
    assert untouched.done == 0


def test_parts_are_run_as_they_were_by_each_build(
    tmp_path: Path, corpus: Path, classifier: Path
) -> None:
    """One part was committed with one batch size, the rest, as the build went on, with another."""
    given: dict[str, Any] = {
        "teacher": classifier,
        "task": "text-classification",
        "signals": ["hidden:layers=4,positions=all,dtype=fp32"],
        "max_length": 48,
        "part_tokens": 2048,
        "out": tmp_path / "c",
    }
    build(corpus, batch_tokens=512, **given)
    for name in ("complete", "commits/000001"):
        shutil.rmtree(tmp_path / "c" / name)
    (tmp_path / "c/hidden/L4/codes/c/1/0").unlink()
    build(corpus, batch_tokens=2048, **given)
    whole = files_of(tmp_path / "c")
    for part in (0, 1):
        flip(tmp_path / f"c/hidden/L4/codes/c/{part}/0", 12_345)
    assert repair(tmp_path / "c").left == ()
    assert files_of(tmp_path / "c") == whole


def test_rows_of_the_plan_need_the_corpus(masked_cache: Cache, tmp_path: Path) -> None:
    root = copy_of(masked_cache, tmp_path)
    spoil(root, "plan")
    broken = files_of(root)
    (left,) = repair(root).left
    assert (left.object, left.part) == ("tokens/c/1", 1)
    assert "say where that is (--corpus FILE)" in left.problem
    assert files_of(root) == broken


def test_another_corpus_puts_nothing_in_its_place(
    masked_cache: Cache, tmp_path: Path, prose_file: Path
) -> None:
    root = copy_of(masked_cache, tmp_path)
    spoil(root, "plan")
    broken = files_of(root)
    lines = prose_file.read_text("utf-8").splitlines()
    (tmp_path / "other.txt").write_text("\n".join(lines[::-1]), "utf-8")
    assert [finding.object for finding in repair(root, corpus=tmp_path / "other.txt").left] == [
        "tokens/c/1"
    ]
    assert files_of(root) == broken


def other_teacher(masked_lm: Path, folder: Path) -> Path:
    """The teacher with the lowest bit of one weight flipped."""
    other = Path(shutil.copytree(masked_lm, folder / "other"))
    model = transformers.AutoModelForMaskedLM.from_pretrained(other)
    weight = model.bert.encoder.layer[3].output.dense.weight.data
    weight.view(-1)[5:6].view(torch.int32).bitwise_xor_(1)
    model.save_pretrained(other)
    return other


def test_a_teacher_that_differs_in_one_bit_repairs_nothing(
    masked_cache: Cache, masked_lm: Path, tmp_path: Path
) -> None:
    root = copy_of(masked_cache, tmp_path)
    spoil(root, "rows")
    broken = files_of(root)
    other = other_teacher(masked_lm, tmp_path)
    with pytest.raises(MismatchError, match=r"not the teacher of the cache: its weights_sha256 is"):
        repair(root, teacher=other)
    with pytest.raises(MismatchError, match="weights_sha256"):
        spot_check(masked_cache.path, 3, teacher=other)
    assert files_of(root) == broken


def test_a_teacher_that_has_moved_is_asked_for_and_taken(
    tmp_path: Path, prose_file: Path, masked_lm: Path
) -> None:
    home = Path(shutil.copytree(masked_lm, tmp_path / "home"))
    made = build(prose_file, teacher=home, task="masked-lm", out=tmp_path / "c", limit=8)
    whole = files_of(tmp_path / "c")
    home.rename(tmp_path / "moved")
    flip(tmp_path / "c/logits/ids/c/0/0", 999)
    with pytest.raises(ModelError, match=r"no longer at .*home; say where it is now \(--teacher"):
        repair(tmp_path / "c")
    assert repair(tmp_path / "c", teacher=tmp_path / "moved").left == ()
    assert files_of(tmp_path / "c") == whole
    assert spot_check(made.path, 2, teacher=tmp_path / "moved").findings == []


def test_what_comes_out_otherwise_is_left_and_named(masked_cache: Cache, tmp_path: Path) -> None:
    """A commit in order that names bytes the teacher does not say: nothing is put there."""
    root = copy_of(masked_cache, tmp_path)
    key = "logits/ids/c/1/0"

    def other_bytes(record: dict[str, Any]) -> None:
        record["objects"][key]["chunks_sha256"] = "0" * 64

    forge_commit(root, 1, other_bytes)
    forge_completion(root, masked_cache.plan.parts)
    before = files_of(root)
    left = {finding.object: finding for finding in repair(root).left}
    assert left[key].part == 1
    assert "what is made now is not what was committed" in left[key].problem
    assert files_of(root) == before


def test_a_merged_cache_is_repaired_share_by_share(
    tmp_path: Path, prose_file: Path, masked_lm: Path
) -> None:
    other = other_teacher(masked_lm, tmp_path)
    task: Any = "masked-lm"
    plan(prose_file, tokenizer=masked_lm, task=task, out=tmp_path / "p", limit=20, max_length=48)
    builds: list[tuple[Path, str, int]] = [
        (masked_lm, "logits:topk,k=8", 2048),
        (masked_lm, "hidden:layers=2,positions=masked", 4096),
        (other, "logits:topk,k=4", 1024),
    ]
    for number, (teacher, signal, size) in enumerate(builds):
        build(
            tmp_path / "p",
            teacher=teacher,
            task=task,
            out=tmp_path / str(number),
            signals=[signal],
            batch_tokens=size,
        )
    root = tmp_path / "merged"
    merge([tmp_path / str(number) for number in range(3)], root)
    whole = files_of(root)
    for key in (
        "logits/ids/c/0/0",
        "hidden/L2/codes/c/0/0",
        "teachers/other/logits/logprobs/c/0/0",
        "teachers/other/logits/ids/zarr.json",
        "commits/000000/zarr.json",
        "complete/zarr.json",
    ):
        flip(root / key, 1234)
    # With its only commit gone, nothing says how the teachers were run: no guess is written.
    left = {finding.object for finding in repair(root).left}
    assert left == {"commits/000000/zarr.json", "complete/zarr.json"}
    (root / "commits/000000/zarr.json").write_bytes(whole["commits/000000/zarr.json"])
    assert repair(root).left == ()
    assert files_of(root) == whole
    assert {figure.signal for figure in spot_check(root, 4).figures} == {
        "logits",
        "hidden",
        "teachers/other/logits",
    }
    merge([tmp_path / "0", tmp_path / "1"], tmp_path / "two")
    merge([tmp_path / "two", tmp_path / "2"], tmp_path / "steps")
    assert files_of(tmp_path / "steps") == whole


@pytest.mark.parametrize("name", ["cache", "masked_cache", "causal_cache"])
def test_a_spot_check_of_a_sound_cache_finds_nothing(
    name: str, request: pytest.FixtureRequest
) -> None:
    cache: Cache = request.getfixturevalue(name)
    spot = spot_check(cache.path, 12)
    assert spot.findings == []
    assert spot.documents == 12
    assert {figure.signal for figure in spot.figures} == set(cache.signals)
    assert all(0 <= figure.found <= figure.limit for figure in spot.figures)
    with pytest.raises(ConfigError, match="1 document or more"):
        spot_check(cache.path, 0)


def forge_rows(root: Path, cache: Cache, array: str, part: int) -> None:
    """Move the rows of one part by one document, every checksum in order."""
    layout = cache.layouts[array]
    starts = np.array([part * layout.part_rows])
    rows = cache._readers[array].read(starts, np.array([layout.part_rows]))
    pieces = encode_shard(np.roll(rows, 1, axis=0), layout.chunk_rows)
    (shard,) = layout.part_shards(part)
    (root / layout.key(shard)).write_bytes(b"".join(pieces))

    def name_it(record: dict[str, Any]) -> None:
        record["objects"][layout.key(shard)] = shard_fingerprint(pieces)

    forge_commit(root, part, name_it)
    forge_completion(root, cache.plan.parts)


@pytest.mark.parametrize("array", ["logits/values", "hidden/L3/codes"])
def test_a_spot_check_finds_rows_that_no_checksum_tells(
    cache: Cache, tmp_path: Path, array: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(cache, tmp_path)
    forge_rows(root, cache, array, 1)
    assert verify(root, full=True) == []
    findings = spot_check(root, 100).findings
    assert {finding.part for finding in findings} == {1}
    assert {finding.object for finding in findings} == {array.partition("/")[0]}
    assert main(["verify", str(root), "--spot", "100", "--quiet"]) == 1
    assert "(part 1): " in capsys.readouterr().out


def test_verify_names_object_and_part_in_every_finding(masked_cache: Cache, tmp_path: Path) -> None:
    root = copy_of(masked_cache, tmp_path)
    flip(root / "logits/ids/c/1/0", 5)
    flip(root / COMMIT.replace("1/", "0/"), 900)
    flip(root / "plan/doc_len/c/1", 5)
    (root / "files/tokenizer/tokenizer.json/c/0").unlink()
    found = {(finding.object, finding.part) for finding in find_damage(root, full=True)}
    assert found == {
        ("logits/ids/c/1/0", 1),
        ("commits/000000/zarr.json", 0),
        ("plan/doc_len/c/1", 1),
        ("files/tokenizer/tokenizer.json/c/0", None),
    }


def test_the_command_line_repairs_and_says_so(
    masked_cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_of(masked_cache, tmp_path)
    spoil(root, "rows")
    capsys.readouterr()
    assert main(["verify", str(root), "--repair", "--spot", "5", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert f"repaired: {root}/logits/logprobs/c/0/0 (part 0): " in out
    assert "The teacher on 5 documents" in out
    spoil(root, "plan")
    assert main(["verify", str(root), "--repair", "--quiet"]) == 1
    assert "tokens/c/1 (part 1): " in capsys.readouterr().out
