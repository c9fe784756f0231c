"""Records, plans and recipes made to harm: refused with an error of ours, and nothing else happens.

The forgeries carry digests that fit, as an attacker's would: what is tested is the sense that the
store makes of them, not that it notices a change.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdcache.building.describe import describe_cache
from kdcache.errors import ConfigError, DamageError, KdcacheError
from kdcache.maintenance.verifying import verify
from kdcache.plans import DOCUMENT_COLUMNS
from kdcache.plans.batch import collate
from kdcache.store import Cache, Writer, create, open_cache, open_plan, plan_record
from kdcache.store.format.array_reader import crc
from kdcache.training.recipe import load_recipe, shipped_recipes
from tests.damage import (
    COMPLETE,
    PLAN,
    copy_of,
    files_of,
    forge_commit,
    forge_completion,
    forge_manifest,
    forge_plan,
    record_of,
    write_record,
)

LONG = int(os.environ.get("KDCACHE_FUZZ", "0"))  # forgeries of each kind, for a long hunt
FUZZ = settings(
    max_examples=LONG or 25,
    deadline=None,
    derandomize=not LONG,  # what one machine sees, all see
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
NASTY: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e308,
    2**31,
    2**63,
    2**64 + 1,
    10**400,
    "",
    "x",
    "..",
    "../../../outside",
    "/etc/passwd",
    "a\0b",
    "\ud800",
    "0" * 64,
    [],
    [[]],
    ["../outside"],
    {},
    {"..": {"bytes": 1, "crc32c": 1}},
    {"a": {"b": {"c": 1}}},
]


@pytest.fixture(scope="module")
def victim(masked_cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache to forge, in a folder that nothing may write to."""
    return copy_of(masked_cache, tmp_path_factory.mktemp("hostile") / "inner")


@contextmanager
def restored(root: Path) -> Iterator[None]:
    """Put every object back that is changed, and look for what should not be there."""
    kept = files_of(root.parent.parent)
    found: list[str] = []
    _watched.append(found)
    try:
        yield
    finally:
        _watched.pop()
        now = files_of(root.parent.parent)
        for key in now.keys() - kept.keys():
            (root.parent.parent / key).unlink()
        for key, data in kept.items():
            if now.get(key) != data:
                (root.parent.parent / key).parent.mkdir(parents=True, exist_ok=True)
                (root.parent.parent / key).write_bytes(data)
        outside = {k for k in now.keys() | kept.keys() if "copy.zarr/" not in k}
        assert all(now.get(key) == kept.get(key) for key in outside)
        assert found == [], "something was unpickled"


_watched: list[list[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event == "pickle.find_class":
        _watched[-1].append(str(arguments))


sys.addaudithook(_audit)


def use(root: Path) -> None:
    """All that a reader may do with a cache."""
    cache = open_cache(root)
    repr(cache)
    describe_cache(cache)
    docs = cache.plan.docs
    for start in range(0, len(docs), 64):
        cache.batch(docs[start : start + 64])
    cache.require_complete()


def harmless(action: Callable[[], object]) -> KdcacheError | None:
    """Run something on forged input: it works, or fails with an error of ours in one line."""
    try:
        action()
    except KdcacheError as error:
        return error if len(str(error)) < 2000 else pytest.fail(f"not one line: {error}")
    return None


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value[:3])
    for key, inner in items:
        yield from _paths(inner, (*path, key))


@st.composite
def mutations(draw: st.DrawFn) -> Callable[[dict[str, Any]], None]:
    """A change of a record: a value replaced, dropped, doubled, or one that nobody asked for."""
    position = draw(st.floats(0, 1, exclude_max=True))
    kind = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "stretch"]))
    value = draw(st.sampled_from(NASTY) | st.integers() | st.text(max_size=8))

    def change(record: dict[str, Any]) -> None:
        paths = [path for path in _paths(record) if path]
        path = paths[int(position * len(paths))]
        place: Any = record
        for key in path[:-1]:
            place = place[key]
        if kind == "replace":
            place[path[-1]] = value
        elif kind == "drop":
            del place[path[-1]]
        elif kind == "stretch" and type(place[path[-1]]) is int:
            place[path[-1]] = place[path[-1]] * 2 + 1
        elif isinstance(place, dict):
            place[str(value)] = value

    return change


def forged(action: Callable[[], None]) -> bool:
    """Whether the forgery could be written at all: half a surrogate cannot be hashed."""
    try:
        action()
    except UnicodeEncodeError:
        return False
    return True


@FUZZ
@given(change=mutations(), again=mutations())
def test_forged_manifests_do_no_harm(victim: Path, change: Any, again: Any) -> None:
    def both(record: dict[str, Any]) -> None:
        change(record)
        if record:
            again(record)

    with restored(victim):
        if forged(lambda: forge_manifest(victim, both)):
            harmless(lambda: use(victim))
            harmless(lambda: verify(victim))
            harmless(lambda: open_plan(victim))


@FUZZ
@given(change=mutations(), data=st.data())
def test_forged_commits_do_no_harm(victim: Path, change: Any, data: st.DataObject) -> None:
    group = data.draw(st.sampled_from(["part", "plan", COMPLETE]))
    with restored(victim):

        def forge() -> None:
            if group == "part":
                forge_commit(victim, 0, change)
            elif group == "plan":
                forge_plan(victim, change)
            else:
                record = record_of(victim, COMPLETE)
                change(record)
                write_record(victim, COMPLETE, record)

        if forged(forge):
            harmless(lambda: use(victim))
            harmless(lambda: verify(victim, full=True))
            harmless(lambda: Writer(victim).republish())
            harmless(lambda: Writer(victim).finalize())


@FUZZ
@given(change=mutations(), array=st.sampled_from(["tokens", "plan/doc_start", "logits/ids"]))
def test_forged_array_metadata_does_no_harm(victim: Path, change: Any, array: str) -> None:
    key = f"{array}/zarr.json"
    with restored(victim):
        node = json.loads((victim / key).read_bytes())
        change(node)
        data = json.dumps(node).encode()
        (victim / key).write_bytes(data)

        def name_it(objects: dict[str, Any]) -> None:
            objects[key] = {"bytes": len(data), "crc32c": crc(data)}

        forge_plan(victim, name_it)
        harmless(lambda: use(victim))
        harmless(lambda: verify(victim, full=True))


RAW = {
    "empty": b"",
    "no table": b"[]",
    "null": b"null",
    "cut off": b'{"attributes": {"kdcache"',
    "no text": b"\xff\xfe\x00",
    "NaN": b'{"attributes": {"kdcache": {"format": NaN}, "sha256": "x"}}',
    "infinite": b'{"attributes": {"kdcache": {"format": 1e999}, "sha256": "x"}}',
    "long number": b'{"attributes": {"kdcache": {"format": ' + b"1" * 9999 + b"}}}",
    "deep": b"[" * 100_000,
    "deep table": b'{"attributes": {"kdcache": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}}",
    "digest of nothing": b'{"attributes": {"kdcache": {}, "sha256": null}}',
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
@pytest.mark.parametrize("group", ["", PLAN, COMPLETE, "commits/000000"])
def test_what_is_no_record_is_damage(victim: Path, group: str, raw: bytes) -> None:
    with restored(victim):
        (victim / group / "zarr.json").write_bytes(raw)
        error = harmless(lambda: use(victim))
        assert isinstance(error, DamageError)
        assert f"{group}/zarr.json".lstrip("/") in str(error)
        assert any(f"{group}/zarr.json".lstrip("/") in problem for problem in verify(victim))


KEYS = ["../outside", "/etc/passwd", "logits/../../outside", "logits/ids/c/0/./0", "a//b", ""]


@pytest.mark.parametrize("name", ["documents", "tokens", "masked"])
def test_a_manifest_counts_what_the_plan_holds(victim: Path, name: str) -> None:
    with restored(victim):
        forge_manifest(victim, lambda record: record["plan"].update({name: 7}))
        with pytest.raises(DamageError, match=rf"plan\.{name} is 7; expected \d+, as many as the"):
            open_cache(victim)
        with pytest.raises(DamageError, match=rf"plan\.{name} is 7"):
            open_plan(victim)
        assert [problem for problem in verify(victim) if f"plan.{name} is 7" in problem]


def test_a_commit_counts_the_documents_of_its_part(victim: Path) -> None:
    with restored(victim):
        forge_commit(victim, 1, lambda record: record.update(documents=7))
        forge_completion(victim, open_cache(victim).plan.parts)
        (problem,) = verify(victim)
        assert "commits/000001" in problem
        assert "counts 7 documents; the plan has" in problem


@pytest.mark.parametrize("parts", [10**9, 2**31])
def test_nobody_loops_over_parts_that_are_not_there(victim: Path, parts: int) -> None:
    """Neither where the arrays' metadata agrees with the manifest."""

    def stretch(folder: Path) -> None:
        node = json.loads((folder / "zarr.json").read_text())
        node["shape"][0] = parts * node["attributes"]["part_rows"]
        data = json.dumps(node).encode()
        (folder / "zarr.json").write_bytes(data)
        key = str((folder / "zarr.json").relative_to(victim))
        fingerprint = {"bytes": len(data), "crc32c": crc(data)}
        forge_plan(victim, lambda objects: objects.update({key: fingerprint}))

    with restored(victim):
        forge_manifest(victim, lambda record: record["plan"].update(parts=parts))
        for agree in (False, True):
            if agree:
                for path in [*victim.glob("plan/*/zarr.json"), *victim.rglob("tokens/zarr.json")]:
                    stretch(path.parent)
            (problem,) = verify(victim)
            assert f"plan.parts is {parts}" in problem
            with pytest.raises(DamageError, match=r"plan\.parts is"):
                open_cache(victim)


@pytest.mark.parametrize("key", KEYS)
def test_no_commit_names_a_path_outside_the_cache(victim: Path, key: str) -> None:
    outside = victim.parent.parent / "outside"
    outside.write_text("mine")
    staged = victim.with_name("copy.zarr.staging")

    def name_it(record: dict[str, Any]) -> None:
        record["objects"][key] = {"bytes": 4, "chunks_sha256": "0" * 64}

    with restored(victim):
        forge_commit(victim, 0, name_it)
        attempt = record_of(victim, "commits/000000")["attempt"]
        (staged / f"000000.{attempt}" / "evil").mkdir(parents=True)
        with pytest.raises(DamageError, match=r"commits/000000/zarr.json is damaged"):
            Writer(victim).republish()
        with pytest.raises(DamageError, match=r"commits/000000/zarr.json is damaged"):
            use(victim)
        shutil.rmtree(staged)
    with restored(victim):
        forge_plan(victim, lambda objects: objects.update({key: {"bytes": 4, "crc32c": 1}}))
        with pytest.raises(DamageError, match=r"commits/plan/zarr.json is damaged"):
            open_cache(victim)
    assert outside.read_text() == "mine"
    outside.unlink()


def test_an_attempt_is_no_path(victim: Path) -> None:
    with restored(victim):
        record = {**record_of(victim, "commits/000000"), "attempt": "../../outside"}
        write_record(victim, "commits/000000", record)
        with pytest.raises(DamageError, match="its attempt or fidelity makes no sense"):
            Writer(victim).republish()


LINKS: dict[str, str] = {
    "shard": "logits/ids/c/0/0",
    "array": "logits/ids",
    "signal": "hidden",
    "commit": "commits/000000",
    "record": "complete/zarr.json",
    "metadata": "logits/logprobs/zarr.json",
    "plan": "plan",
}


@pytest.mark.parametrize("key", LINKS.values(), ids=LINKS)
def test_links_lead_nobody_out_of_a_cache(masked_cache: Cache, tmp_path: Path, key: str) -> None:
    root = copy_of(masked_cache, tmp_path)
    (root / key).rename(tmp_path / "outside")
    (root / key).symlink_to(tmp_path / "outside")
    with pytest.raises(DamageError, match=r"leads out of the cache, to .*copy it again with its"):
        use(root)
    assert any("leads out of the cache" in problem for problem in verify(root))
    use(link_to(masked_cache, tmp_path))  # the user's own link to a whole cache


def link_to(cache: Cache, folder: Path) -> Path:
    (folder / "link").symlink_to(cache.path)
    return folder / "link"


@pytest.mark.parametrize("key", ["zarr.json", "logits/ids/c/0/0", "commits/000000/zarr.json"])
def test_nobody_waits_for_a_pipe(masked_cache: Cache, tmp_path: Path, key: str) -> None:
    root = copy_of(masked_cache, tmp_path)
    (root / key).unlink()
    os.mkfifo(root / key)
    with pytest.raises(DamageError, match=str(root / key)):
        use(root)
    assert any(key in problem for problem in verify(root, full=True))


@FUZZ
@given(
    column=st.sampled_from([name for name in DOCUMENT_COLUMNS if name not in ("value", "view")]),
    row=st.integers(0, 127),
    value=st.sampled_from([-(2**31), -1, 1, 127, 2**31 - 1, -(2**63), 2**63 - 1]) | st.integers(),
)
def test_forged_plans_do_no_harm(
    masked_cache: Cache,
    tmp_path_factory: pytest.TempPathFactory,
    column: str,
    row: int,
    value: int,
) -> None:
    plan = masked_cache.plan
    per_document = {name: rows.copy() for name, rows in plan.per_document.items()}
    limits = np.iinfo(per_document[column].dtype)
    per_document[column][row] = min(max(value, limits.min), limits.max)
    check_plan(
        dataclasses.replace(plan, per_document=per_document), tmp_path_factory.mktemp("plan")
    )


def check_plan(plan: Any, folder: Path) -> KdcacheError | None:
    """Write a plan as its makers would, and use it."""
    create(folder / "p", plan_record(plan), plan)

    def read() -> None:
        opened = open_plan(folder / "p")
        for start in range(0, len(opened.docs), 64):
            collate(opened, opened.docs[start : start + 64], {})

    error = harmless(read)
    shutil.rmtree(folder)
    return error


@pytest.mark.parametrize("column", ["tokens", "masked_label", "masked_position"])
def test_ids_beyond_the_vocabulary_never_reach_a_model(
    masked_cache: Cache, tmp_path: Path, column: str
) -> None:
    plan = masked_cache.plan
    columns: dict[str, Any] = {}
    for name, reader in plan.columns.items():
        size = plan.parts * plan.rows["token" if name == "tokens" else "selected"]
        columns[name] = reader[0:size].copy()
    columns[column][3] = 60_000
    error = check_plan(dataclasses.replace(plan, columns=columns), tmp_path / "x")
    assert isinstance(error, DamageError)
    assert column in str(error)


@pytest.mark.parametrize("label", [3, 2**31 - 1, -7])
def test_a_label_that_is_no_class_of_the_teacher_is_refused(
    cache: Cache, tmp_path: Path, label: int
) -> None:
    per_document = {name: rows.copy() for name, rows in cache.plan.per_document.items()}
    per_document["label"][cache.plan.docs[5]] = label
    plan = dataclasses.replace(cache.plan, per_document=per_document)
    record = {n: v for n, v in cache.manifest.items() if n != "contents"} | plan_record(plan)
    create(tmp_path / "c", {**record, "kind": "cache"}, plan)
    with pytest.raises(DamageError, match=r"plan/label is damaged: row \d+, of part 0"):
        open_cache(tmp_path / "c")


@FUZZ
@given(
    name=st.sampled_from(shipped_recipes()),
    keys=st.lists(
        st.sampled_from(
            ["losses", "kl", "weight", "temperature", "student", "training", "data", "window", ".."]
        ),
        max_size=4,
    ),
    value=st.sampled_from(["nan", "-inf", "1e999", "[]", "{}", "''", "../x", "{a=1}", "9" * 5000])
    | st.text(max_size=12),
)
def test_hostile_overrides_of_recipes_do_no_harm(name: str, keys: list[str], value: str) -> None:
    error = harmless(lambda: load_recipe(name, [f"{'.'.join(keys)}={value}"]))
    assert error is None or isinstance(error, ConfigError)


@FUZZ
@given(name=st.sampled_from(shipped_recipes()), change=mutations(), cut=st.integers(0, 400))
def test_hostile_recipe_files_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, name: str, change: Any, cut: int
) -> None:
    table = load_recipe(name).to_json()
    change(table)
    folder = tmp_path_factory.mktemp("recipe")
    text = "\n".join(_lines(table))
    for content in (text, text[:cut], text[cut:]):
        (folder / "r.toml").write_text(content, "utf-8", errors="replace")
        error = harmless(lambda: load_recipe(folder / "r.toml"))
        assert error is None or isinstance(error, ConfigError)
    (folder / "r.toml").write_bytes(b"\xff\xfe" + text.encode("utf-16", "replace"))
    with pytest.raises(ConfigError, match="is not"):
        load_recipe(folder / "r.toml")
    shutil.rmtree(folder)


def _lines(table: Any, prefix: str = "") -> Iterator[str]:
    """Any table as TOML, sound or not."""
    if not isinstance(table, dict):
        return
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{key or 'x'} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"[{prefix}{key}]"
            yield from _lines(value, f"{prefix}{key}.")


def test_no_module_unpickles() -> None:
    """Weights are safetensors, records JSON, rows plain bytes: nothing here runs what it reads."""
    root = Path(__file__).parents[1]
    for path in [*root.glob("kdcache/**/*.py"), *root.glob("cli/**/*.py")]:
        text = path.read_text("utf-8")
        loads = r"(?<!safetensors\.)torch\.load\(|np\.load\((?!\w+, allow_pickle=False\))"
        runs = rf"import pickle|{loads}|marshal"
        found = re.search(runs, text)
        assert found is None, f"{path}: {found}"
