"""A student that was saved is given back whole, or its folder is refused: no weight is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import kdcache
from kdcache.errors import ModelError
from kdcache.models import StudentSpec, load_student, save_tokenizer
from kdcache.models.student_again import student_again
from kdcache.models.together import homes
from kdcache.store import Cache
from kdcache.students import StaticEmbeddings, Together
from tests.conftest import bert_config
from tests.test_module_students import Averaging, made

Tensors = dict[str, torch.Tensor]


class Tied(Averaging):
    """Of two names for one weight, of which a file has one."""

    def __init__(self, outputs: int = 3, by_token: bool = False, **told: Any) -> None:
        super().__init__(outputs, by_token, **told)
        self.again = self.inner


def drawn(tokenizer: Path) -> transformers.PreTrainedModel:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertForSequenceClassification(bert_config(tokenizer, num_labels=3, **sizes))


WAYS: dict[str, tuple[Callable[[Path], StudentSpec], str, str]] = {
    "teacher layers": (lambda _: StudentSpec(init_from_teacher=(2,)), "", "classifier.bias"),
    "module": (lambda _: StudentSpec(module=made()), "", "outer.bias"),
    "tied module": (lambda _: StudentSpec(module=made(Tied)), "", "inner.weight"),
    "model": (lambda place: StudentSpec(module=drawn(place)), "", "bert.pooler.dense.weight"),
    "several": (
        lambda place: StudentSpec(
            module=Together([drawn(place), StaticEmbeddings(vocabulary=600, outputs=3)])
        ),
        "student-1",
        "classifier.weight",
    ),
}
"""A student, in which folder of its own one lies, and a weight of that."""


def lack(tensors: Tensors, name: str) -> None:
    del tensors[next(iter({name, name.replace("inner", "again")} & tensors.keys()))]


def add(tensors: Tensors, name: str) -> None:
    tensors["another.weight"] = torch.ones(2)


def cut(tensors: Tensors, name: str) -> None:
    name = next(iter({name, name.replace("inner", "again")} & tensors.keys()))
    tensors[name] = tensors[name][:-1].clone()


@pytest.mark.parametrize("way", WAYS)
def test_a_saved_student_is_given_back_whole_or_refused(
    way: str, cache: Cache, tokenizer: Path, tmp_path: Path
) -> None:
    make, inner, name = WAYS[way]
    student = load_student(cache, make(tokenizer), seed=1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.25  # as training would move them
    for home, one in homes(tmp_path, student):
        one.save_pretrained(home)
        save_tokenizer(cache, home)
    again = student_again(cache, make(tokenizer), tmp_path, seed=2)
    own = dict(student.named_parameters())
    assert own.keys() == dict(again.named_parameters()).keys()
    for key, value in again.named_parameters():
        assert torch.equal(value, own[key]), key
    file = tmp_path / inner / "model.safetensors"
    whole = load_file(file)
    for change in (lack, add, cut):
        tensors = dict(whole)
        change(tensors, name)
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ModelError) as found:
            student_again(cache, make(tokenizer), tmp_path, seed=2)
        assert "\n" not in str(found.value)
        wanted = "another.weight" if change is add else name.rpartition(".")[2]
        assert wanted in str(found.value)


def test_a_module_that_lacks_a_weight_is_not_opened(cache: Cache, tmp_path: Path) -> None:
    load_student(cache, StudentSpec(module=made()), seed=1).save_pretrained(tmp_path)
    save_tokenizer(cache, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["outer.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"it lacks outer\.bias; give the class and settings"):
        kdcache.open_student(tmp_path, trust_remote_code=True)
    with pytest.raises(ModelError, match=r"lacks outer\.bias"):
        load_student(cache, StudentSpec(checkpoint=str(tmp_path), trust_remote_code=True), seed=1)
