"""A teacher is a function, not a set of weights: its configuration is compared key by key, and what
a folder is called is not."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kdcache.building.builder import build
from kdcache.building.creating import software
from kdcache.building.planner import plan
from kdcache.errors import MismatchError
from kdcache.maintenance.merging import merge
from kdcache.maintenance.repair import repair
from kdcache.maintenance.spot_check import spot_check
from kdcache.maintenance.verifying import verify
from kdcache.models import StudentSpec, load_student
from kdcache.models.configuration import function_of
from kdcache.plans.identity import FUNCTION, teacher_differences
from kdcache.store import Cache, open_cache, write_plan
from kdcache.training.train import train
from tests.archives import unpack
from tests.conftest import save_teacher
from tests.damage import files_of, forge_manifest

OPTIONS: dict[str, Any] = {
    "task": "causal-lm",
    "signals": ["logits:topk,k=4"],
    "limit": 12,
    "max_length": 32,
    "part_tokens": 256,
    "batch_tokens": 256,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=len(transformers.AutoTokenizer.from_pretrained(tokenizer)),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    folder = tmp_path_factory.mktemp("teacher") / "llama"
    return save_teacher(folder, tokenizer, transformers.LlamaForCausalLM(config))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, llama: Path, prose_file: Path) -> Cache:
    out = tmp_path_factory.mktemp("cache") / "whole"
    return build(prose_file, teacher=llama, out=out, **OPTIONS)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, whole: Cache) -> Path:
    """The cache as a build leaves it that was killed before its last part."""
    root = Path(shutil.copytree(str(whole.path), tmp_path_factory.mktemp("begun") / "cache"))
    shutil.rmtree(root / "complete")
    shutil.rmtree(root / f"commits/{whole.plan.parts - 1:06d}")
    return root


def edited(teacher: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """The same weights with another configuration."""
    other = Path(shutil.copytree(teacher, folder / "edited"))
    values = json.loads((other / "config.json").read_text())
    for name, value in changes.items():
        table, _, key = name.rpartition(".")
        (values[table] if table else values)[key] = value
    (other / "config.json").write_text(json.dumps(values))
    return other


class Recorder:
    """Keeps the messages, and does something when the teacher has begun to run."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.lines: list[str] = []
        self.then = then

    @contextmanager
    def bar(self, label: str, *, unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            if label.startswith("running "):
                then, self.then = self.then, lambda: None
                then()

        yield advance

    def say(self, message: str) -> None:
        self.lines.append(message)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.lines if line.startswith("warning: ")]


FUNCTIONS: dict[str, Any] = {
    "rope_parameters.rope_theta": 100.0,
    "rms_norm_eps": 1e-3,
    "hidden_act": "relu",
    "attention_dropout": 0.5,
    "pad_token_id": 7,
    "quantization_config": {"quant_method": "none of ours", "bits": 4},
}


def test_what_a_class_says_of_values_it_fills_in_is_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("transformers")
    ends = {"bos_token_id": 0, "eos_token_id": 0}  # GPT-2's own lie beyond so few tokens
    config = transformers.GPT2Config(vocab_size=91, n_embd=8, n_layer=1, n_head=1, **ends)
    model = transformers.GPT2LMHeadModel(config)
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    log.addHandler(caplog.handler)
    try:
        implied = function_of(model)["implied"]
        assert not caplog.messages
        transformers.GPT2Config(vocab_size=92)  # what was hidden is said once, and not again
        assert any("bos_token_id" in line for line in caplog.messages)
    finally:
        log.removeHandler(caplog.handler)
        transformers.logging.set_verbosity(before)
    assert "n_inner" in implied
    assert "vocab_size" not in implied


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_changed_configuration_is_refused_by_name(
    begun: Path, llama: Path, prose_file: Path, tmp_path: Path, name: str
) -> None:
    before = files_of(begun)
    other = edited(llama, tmp_path, {name: FUNCTIONS[name]})
    if name == "quantization_config":  # no weights of ours are quantised: it is only compared
        config = transformers.LlamaConfig.from_pretrained(other)
        stored = open_cache(begun).manifest["teacher"]
        found = {**stored, **function_of(transformers.LlamaForCausalLM(config))}
        assert teacher_differences(stored, found)[0][0].startswith(f"config.{name}.")
        return
    with pytest.raises(MismatchError, match=rf"teacher\.config\.{name} is .* there and .* now; ch"):
        build(prose_file, teacher=other, out=begun, **OPTIONS)
    assert files_of(begun) == before


def test_names_paths_versions_and_labels_do_not_matter(
    begun: Path, whole: Cache, llama: Path, prose_file: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {
        "_name_or_path": "/elsewhere/llama",
        "architectures": ["AnotherName"],
        "transformers_version": "4.0.0",
        "id2label": {"0": "a", "1": "b", "2": "c"},
        "label2id": {"a": 0, "b": 1, "c": 2},
        "dtype": "bfloat16",
        "tokenizer_class": "LlamaTokenizer",
    }
    root = Path(shutil.copytree(begun, tmp_path / "cache"))
    moved = edited(llama, tmp_path, changes).rename(tmp_path / "another name")
    finished = build(prose_file, teacher=moved, out=root, **OPTIONS)
    assert finished.complete
    assert files_of(root) == files_of(Path(str(whole.path)))


def test_a_builder_that_joins_is_held_to_the_same_teacher(
    llama: Path, prose_file: Path, tmp_path: Path
) -> None:
    other, refused = edited(llama, tmp_path, {"rms_norm_eps": 1e-2}), []

    def join() -> None:
        with pytest.raises(MismatchError, match=r"teacher\.config\.rms_norm_eps") as error:
            build(prose_file, teacher=other, out=tmp_path / "cache", **OPTIONS)
        refused.append(error)

    build(prose_file, teacher=llama, out=tmp_path / "cache", progress=Recorder(join), **OPTIONS)
    assert len(refused) == 1


def test_caches_of_another_function_are_not_merged_and_of_another_name_are(
    whole: Cache, llama: Path, prose_file: Path, tmp_path: Path
) -> None:
    asked = {**OPTIONS, "signals": ["hidden:layers=2,positions=all,dtype=bf16"]}
    other = edited(llama, tmp_path, {"rope_parameters.rope_theta": 7.0})
    build(prose_file, teacher=other, out=tmp_path / "other", **asked)
    with pytest.raises(MismatchError, match=r"same weights: teacher\.config\.rope.*theta is 7\.0"):
        merge([whole.path, tmp_path / "other"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    named = Path(shutil.copytree(llama, tmp_path / "another name"))
    build(prose_file, teacher=named, out=tmp_path / "same", **asked)
    merge([whole.path, tmp_path / "same"], tmp_path / "merged")
    both = open_cache(tmp_path / "merged")
    assert both.teachers == ()
    assert set(both.signals) == {"logits", "hidden"}
    assert both.manifest["format"] == 3
    assert verify(both.path, full=True) == []


def test_another_function_repairs_and_spots_nothing(
    whole: Cache, llama: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(str(whole.path), tmp_path / "cache"))
    (root / "logits/ids/c/0/0").write_bytes(b"short")
    broken = files_of(root)
    other = edited(llama, tmp_path, {"hidden_act": "gelu"})
    with pytest.raises(MismatchError, match=r"its config\.hidden_act is gelu there and silu"):
        repair(root, teacher=other)
    assert files_of(root) == broken
    with pytest.raises(MismatchError, match=r"its config\.hidden_act"):
        spot_check(whole.path, 2, teacher=other)
    moved = Path(shutil.copytree(llama, tmp_path / "another name"))
    assert repair(root, teacher=moved).left == ()
    assert files_of(root) == files_of(Path(str(whole.path)))


def test_no_student_is_made_of_another_function(
    llama: Path, prose_file: Path, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(llama, tmp_path / "own"))
    made = build(prose_file, teacher=own, out=tmp_path / "cache", **OPTIONS)
    other = edited(llama, tmp_path, {"rope_parameters.rope_theta": 7.0})
    shutil.copy(other / "config.json", own / "config.json")
    with pytest.raises(
        MismatchError, match=r"its config\.rope_parameters\.rope_theta is 7\.0.*--k"
    ):
        load_student(made, StudentSpec(init_from_teacher=(1,)), seed=0)


CODE = """
import torch, transformers
from .extra import FACTOR
class OwnConfig(transformers.LlamaConfig):
    model_type = "own"
class OwnModel(transformers.LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **more):
        output = super().forward(input_ids, attention_mask, use_cache=use_cache, **more)
        output.logits = output.logits * FACTOR
        return output
"""


def test_code_that_comes_with_a_model_is_part_of_it(
    llama: Path, prose_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    monkeypatch.syspath_prepend(modules)
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    own = edited(llama, tmp_path, {"model_type": "own", "auto_map": names})
    (own / "own.py").write_text(CODE)
    (own / "extra.py").write_text("FACTOR = 2.0\n")
    asked = {**OPTIONS, "trust_remote_code": True, "out": tmp_path / "cache", "tokenizer": llama}
    made = build(prose_file, teacher=own, **asked)
    assert len(made.manifest["teacher"]["code_sha256"]) == 64
    moved = own.rename(tmp_path / "moved")
    assert build(prose_file, teacher=moved, **asked).complete
    (moved / "extra.py").write_text("FACTOR = 3.0\n")
    with pytest.raises(MismatchError, match=r"teacher\.code_sha256"):
        build(prose_file, teacher=moved, **asked)


def table(config: Any) -> dict[str, Any]:
    """What a manifest says of the function of a model with this configuration."""

    class Model:
        def __init__(self) -> None:
            self.config = config

    return function_of(Model())


def test_values_that_a_version_does_not_know_count_as_their_class_has_them() -> None:
    now = table(transformers.LlamaConfig(rms_norm_eps=1e-4, num_attention_heads=4))
    assert "attention_bias" in now["implied"]
    assert "head_dim" in now["implied"], "worked out of others"
    assert "rms_norm_eps" not in now["implied"]
    for name, value in now["config"].items():
        if not isinstance(value, dict):
            before = {**now, "config": {k: v for k, v in now["config"].items() if k != name}}
            for pair in ((before, now), (now, before)):
                found = [field for field, _, _ in teacher_differences(*pair)]
                assert found == ([] if name in now["implied"] else [f"config.{name}"])
    other = {**now, "config": {**now["config"], "attention_bias": True}}
    assert teacher_differences(now, other) == [("config.attention_bias", False, True)]
    unknown = {**now["config"], "later": 3}
    assert teacher_differences(now, {**now, "config": unknown})[0][0] == "config.later"
    assert not teacher_differences(
        now, {**now, "config": unknown, "implied": [*now["implied"], "later"]}
    )


def test_rotary_settings_compare_wherever_they_lie() -> None:
    now = table(
        transformers.LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    )
    rest = {name: v for name, v in now["config"].items() if name != "rope_parameters"}
    for theta, found in ((500_000, []), (10_000.0, ["config.rope_parameters.rope_theta"])):
        before = {**now, "config": {**rest, "rope_theta": theta, "rope_scaling": None}}
        assert [name for name, _, _ in teacher_differences(before, now)] == found


def test_a_text_model_within_another_compares_the_same_way() -> None:
    def found(**changes: Any) -> dict[str, Any]:
        text = {"num_hidden_layers": 2, "hidden_size": 32, "_name_or_path": "x", **changes}
        return table(transformers.Gemma3Config(text_config=text))

    one, other = found(), found(rms_norm_eps=1e-3)
    assert [name for name, _, _ in teacher_differences(one, other)] == [
        "config.text_config.rms_norm_eps"
    ]
    assert "_name_or_path" not in one["config"]["text_config"]
    del one["config"]["text_config"]["rms_norm_eps"]
    assert teacher_differences(one, found()) == []
    assert len(teacher_differences(one, other)) == 1


def test_a_plan_made_with_the_same_tokenizer_elsewhere_is_the_same(
    tokenizer: Path, corpus: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(tokenizer, tmp_path / "another name"))
    first, second = (
        plan(corpus, tokenizer=place, task="text-classification", out=tmp_path / "plan", limit=9)
        for place in (tokenizer, moved)
    )
    assert first.sha256 == second.sha256
    write_plan(tmp_path / "plan", second)
    with pytest.raises(MismatchError, match=r"plan holds another plan: plan\.config\.max_length"):
        plan(
            corpus,
            tokenizer=moved,
            task="text-classification",
            out=tmp_path / "plan",
            limit=9,
            max_length=64,
        )


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    archive = Path(__file__).with_name("format2.zip")
    folder = unpack(archive, tmp_path_factory.mktemp("format2"))
    for name in ("unfinished", "labels"):
        forge_manifest(folder / name, lambda record: record.update(software=software()))
    return folder


OLD: dict[str, Any] = {
    "task": "masked-lm",
    "max_length": 12,
    "part_tokens": 128,
    "batch_tokens": 48,
    "seed": 3,
}


def test_an_old_unfinished_build_wants_the_teacher_vouched_for(old: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(old / "unfinished", tmp_path / "unfinished"))
    moved = Path(shutil.copytree(old / "masked_lm", tmp_path / "another name"))
    before, watch = files_of(root), Recorder()
    asked = {**OLD, "teacher": moved, "out": root, "signals": ["logits:topk,k=3"]}
    with pytest.raises(MismatchError, match=r"does not tell the configuration .*--same-teacher"):
        build(old / "texts.txt", **asked)
    assert files_of(root) == before
    made = build(old / "texts.txt", same_teacher=True, progress=watch, **asked)
    assert len(watch.warnings) == 1
    assert made.manifest["format"] == 2
    assert verify(root, full=True) == []
    again = Recorder()
    build(old / "texts.txt", progress=again, **asked)
    assert again.warnings == [], "nothing is added to a complete one"


def test_old_caches_are_used_with_one_warning(old: Path, tmp_path: Path) -> None:
    for use in (
        lambda watch: merge([old / "labels", old / "states"], tmp_path / "merged", progress=watch),
        lambda watch: spot_check(old / "labels", 2, teacher=old / "masked_lm", progress=watch),
        lambda watch: train(
            old / "labels",
            recipe="mlm-kd",
            out=tmp_path / "student",
            student=str(old / "masked_lm"),
            overrides=["training.max_steps=1"],
            progress=watch,
        ),
    ):
        watch = Recorder()
        use(watch)
        assert len(watch.warnings) == 1
        assert "made before format 3, without the configuration" in watch.warnings[0]
    root = Path(shutil.copytree(old / "labels", tmp_path / "labels"))
    whole, watch = files_of(root), Recorder()
    (root / "logits/ids/c/0/0").write_bytes(b"short")
    assert repair(root, teacher=old / "masked_lm", progress=watch).left == ()
    assert len(watch.warnings) == 1
    assert files_of(root) == whole


def test_old_and_new_caches_merge_into_an_old_one_that_is_repaired(
    old: Path, tmp_path: Path
) -> None:
    signals = ["hidden:layers=1,positions=masked,dtype=fp32"]
    new = tmp_path / "new"
    teacher = Path(shutil.copytree(old / "masked_lm", tmp_path / "another name"))
    build(old / "texts.txt", teacher=teacher, out=new, signals=signals, **OLD)
    for order in ([old / "labels", new], [new, old / "labels"]):
        root = tmp_path / f"merged-{order[0].name}"
        merge(order, root)
        both = open_cache(root)
        assert both.manifest["format"] == 2
        assert both.teachers == ()
        assert FUNCTION[0] not in both.manifest["teacher"]
        assert verify(root, full=True) == []
        whole = files_of(root)
        for key in ("logits/ids", "hidden/L1/codes", "tokens", "files/tokenizer/tokenizer.json"):
            (root / key / "zarr.json").write_text("{}")
        assert repair(root, teacher=teacher).left == ()
        assert files_of(root) == whole


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config", [1]),
        ("config", {"a": "x" * 2**22}),
        ("config", {"a": [[[[[[[[[[[[[[1]]]]]]]]]]]]]]}),
        ("implied", {"a": 1}),
        ("implied", [1]),
        ("code_sha256", "abc"),
    ],
)
def test_a_configuration_that_is_none_is_damage(
    whole: Cache, tmp_path: Path, field: str, value: Any
) -> None:
    root = Path(shutil.copytree(str(whole.path), tmp_path / "cache"))
    forge_manifest(root, lambda record: record["teacher"].update({field: value}))
    assert [problem for problem in verify(root) if f"teacher.{field} is" in problem]
    forge_manifest(root, lambda record: record["teacher"].pop(field))
    assert [problem for problem in verify(root) if f"it has no teacher.{field}" in problem]


def test_every_array_of_a_new_store_names_its_dimensions(
    masked_cache: Cache, tmp_path: Path
) -> None:
    sizes: dict[Path, dict[str, int]] = {}
    root = Path(str(masked_cache.path))
    arrays = 0
    for path in sorted(root.rglob("zarr.json")):
        node = json.loads(path.read_text())
        if node["node_type"] == "array":
            arrays += 1
            names = node["dimension_names"]
            assert len(names) == len(node["shape"]) == len(set(names))
            assert path.parent.name not in names, "an array named as a dimension is its index"
            for name, size in zip(names, node["shape"], strict=True):
                above = [path.parent.parent, *path.parent.parent.parents]
                for group in above[: above.index(root) + 1]:
                    assert sizes.get(group, {}).get(name, size) == size
                sizes.setdefault(path.parent.parent, {})[name] = size
    assert arrays > 20
    assert masked_cache.manifest["format"] == 3
