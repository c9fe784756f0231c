"""A model's configuration as a manifest keeps it: the function, without names, paths and labels."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

from kdcache.manifest import Json
from kdcache.models.auto import silent_transformers
from kdcache.plans.identity import Leaf, dotted, leaves

LEFT_OUT = {
    "_name_or_path",  # where the files lie
    "name_or_path",
    "_commit_hash",  # which version of a repository they are
    "transformers_version",  # what wrote them
    "architectures",  # names of classes; the manifest has that of the class that ran
    "tokenizer_class",  # the tokenizer's identity is the plan's
    "auto_map",  # where code lies; the manifest has the code's digest
    "id2label",  # labels; the manifest has the classes in the order of their ids
    "label2id",
    "dtype",  # of the files, or of the last forward; the manifest has that of the forward
    "torch_dtype",
    "_attn_implementation",  # the manifest has the one that ran
    "_attn_implementation_internal",
    "attn_implementation",
}
"""Keys of a configuration, and of those within it, that do not change what a model says."""

REMOTE = "transformers_modules"
"""The package in which transformers puts code that comes with a model."""


def function_of(model: Any) -> Json:
    """What beside its weights makes a model the function it is, for the manifest.

    `config` is its configuration, `implied` the dotted names of those of its values that the
    configuration's class would fill in itself, `code_sha256` the digest of the code that came with
    it, or None.
    """
    config = model.config
    return {
        "config": settings(config),
        "implied": sorted(map(dotted, _implied(config))),
        "code_sha256": code_sha256(type(model), type(config)),
    }


def settings(config: Any) -> Json:
    """All values of a configuration as JSON, those it fills in too, without LEFT_OUT."""
    text = config.to_json_string(use_diff=False)
    found: Json = _settings(json.loads(text, parse_constant=lambda name: {"__float__": name}))
    return found


def _settings(value: Any) -> Any:
    if not isinstance(value, dict) or "model_type" not in value:
        return value  # a table of settings, such as those of a quantisation, is kept whole
    return {key: _settings(inner) for key, inner in value.items() if key not in LEFT_OUT}


def _implied(config: Any) -> list[Leaf]:
    """Values that come back where they are left out: the class's defaults and what it works out."""
    whole = settings(config)
    found = dict(leaves(whole))
    with warnings.catch_warnings(), silent_transformers():  # of what classes fill in: no model's
        warnings.simplefilter("ignore")
        usual = _again(config, {})
        rest = [leaf for leaf, value in found.items() if usual.get(leaf, _again) != value]
        back = [
            leaf for leaf in rest if _again(config, _without(whole, leaf)).get(leaf) == found[leaf]
        ]
    return [leaf for leaf in found if leaf not in rest] + back


def _again(config: Any, values: Json) -> dict[Leaf, Any]:
    """The values of a configuration of the same class made of `values`; empty if it refuses."""
    try:
        return dict(leaves(settings(type(config)(**copy.deepcopy(values)))))
    except Exception:  # each class checks its values in its own way
        return {}


def _without(table: Json, leaf: Leaf) -> Json:
    key, rest = leaf[0], leaf[1:]
    if not rest:
        return {name: value for name, value in table.items() if name != key}
    return {**table, key: _without(table[key], rest)}


def code_sha256(*classes: type) -> str | None:
    """SHA-256, in hex, of the files of code that classes from a model's folder are made of.

    None if no such code was run.
    """
    files: dict[str, bytes] = {}
    for kind in (base for made in classes for base in made.__mro__):
        if kind.__module__.partition(".")[0] == REMOTE:
            first = str(sys.modules[kind.__module__].__file__)
            for name in (first, *get_relative_import_files(first)):
                files[Path(name).name] = Path(name).read_bytes()
    if not files:
        return None
    state = hashlib.sha256()
    for name, content in sorted(files.items()):
        state.update(f"{name} {len(content)}\n".encode() + content)
    return state.hexdigest()
