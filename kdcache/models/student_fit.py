"""What a student takes over of a cache, such as its classes, and whether it takes its documents."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import transformers

from kdcache.errors import ModelError
from kdcache.labels import LabelKind
from kdcache.models.auto import require_token_types
from kdcache.models.largest_id import require_ids
from kdcache.models.padding import pad_of
from kdcache.models.teacher import most_tokens

if TYPE_CHECKING:
    from kdcache.store import Cache

ENDS = 256  # documents whose last token is looked at before a pad is chosen


def require_tokens(config: Any, cache: Cache) -> None:
    """Raise ModelError if a student's configuration lacks a token of a cache, or a type of one."""
    way = (
        "choose a student with the teacher's tokenizer, let it read by its own "
        "(student.tokenizer=FOLDER), or leave the document out"
    )
    require_ids(cache.plan, config.get_text_config().vocab_size, "the student", way)
    require_token_types(config, cache.plan, "the student")


def require_length(student: Any, cache: Cache) -> None:
    """Raise ModelError if a cache has longer documents than a student takes."""
    limit, longest = most_tokens(student), int(cache.plan.per_document["doc_len"].max())
    if limit is not None and longest > limit:
        raise ModelError(
            f"the student takes {limit} tokens, the cache has documents of {longest}; choose a "
            f"student that takes more, or build a cache with --max-length {limit}"
        )


def name_pad(config: Any, cache: Cache) -> None:
    """Let a student without a pad name one, now that no embedding is made with zeros in its place.

    It is the tokenizer's, which is saved beside the student, or else one of the student's own
    special tokens. One that documents end with would hide their end, and none is named then.
    """
    if pad_of(config) is not None:
        return
    plan = cache.plan
    own = [plan.config.tokenizer["pad_id"]] if _pads(cache) else _special_ids(config)
    starts, lens = plan.spans(plan.docs[:ENDS], "token")
    reader: Any = plan.columns["tokens"]
    ends = reader.read(starts + lens - 1, np.ones_like(lens))
    fit = (pad for pad in own if pad < config.vocab_size and pad not in ends)
    config.pad_token_id = next(fit, None)


def _pads(cache: Cache) -> bool:
    """Whether the tokenizer of a cache has a pad token: the id in its plan may be a guess."""
    name = "tokenizer/tokenizer_config.json"
    with tempfile.TemporaryDirectory() as folder:
        cache.extract(Path(folder), [name])
        record = json.loads((Path(folder) / Path(name).name).read_text("utf-8"))
    return record.get("pad_token") is not None


def _special_ids(config: Any) -> list[int]:
    """Ids that end and begin texts, as far as a configuration names a single one."""
    found = (getattr(config, name, None) for name in ("eos_token_id", "bos_token_id"))
    return [token for token in found if isinstance(token, int)]


def take_generation(student: Any, cache: Cache) -> None:
    """Let a language model that starts anew begin, sample and stop as the teacher does."""
    name = "teacher/generation_config.json"
    if name in cache.files and student.can_generate():
        with tempfile.TemporaryDirectory() as folder:
            cache.extract(Path(folder), [name])
            student.generation_config = transformers.GenerationConfig.from_pretrained(folder)


def set_classes(config: Any, kind: LabelKind, classes: list[str] | None, outputs: int) -> None:
    """Give a configuration the classes of a cache; those without a name are called LABEL_n."""
    names = list(classes or [])
    names += [f"LABEL_{i}" for i in range(len(names), outputs)]
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    config.problem_type = kind.problem_type
