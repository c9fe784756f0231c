"""Teachers: loading, fingerprint and checks."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdcache.errors import ConfigError, ModelError, one_of
from kdcache.labels import kind_of
from kdcache.manifest import Json
from kdcache.models.auto import (
    auto_class,
    load_config,
    problem_type_of,
    require_direction,
    require_sizes,
    require_token_types,
    unreadable,
)
from kdcache.models.classifier_outputs import class_names
from kdcache.models.configuration import function_of
from kdcache.models.largest_id import require_ids
from kdcache.models.token_map import difference, token_map
from kdcache.models.tokenizer import Tokenizer, short_name
from kdcache.plans import Plan
from kdcache.signals import ModelSizes
from kdcache.tasks import Task, as_task

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SPARE_ROWS = 2048  # embeddings beyond a vocabulary that has no tokenizer to be compared with


@dataclass(frozen=True)
class Teacher:
    """A loaded teacher in inference mode, and what identifies it."""

    model: Any
    identity: Json
    shape: ModelSizes
    device: torch.device

    def files(self, *, weights: bool) -> dict[str, bytes | Path]:
        """Its configurations and, with `weights`, its safetensors files, by name.

        Weights are written to a temporary folder that lives as long as the process.
        """
        if not weights:
            configs = {"config.json": self.model.config}
            if self.model.can_generate():
                configs["generation_config.json"] = self.model.generation_config
            return {name: config.to_json_string().encode() for name, config in configs.items()}
        folder = Path(_keep_folder())
        self.model.save_pretrained(folder)
        return {path.name: path for path in sorted(folder.iterdir())}


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _keep_folder() -> str:
    _folders.append(tempfile.TemporaryDirectory(prefix="kdcache-teacher-"))
    return _folders[-1].name


def pick_device(name: str) -> torch.device:
    """The device of that name, "auto" a GPU if there is one; ConfigError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", str(name)):
        raise ConfigError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    device, seen = torch.device(name), torch.cuda.device_count()
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} is not there: torch sees no GPU; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= seen:
        raise ConfigError(f"device {name!r} is not there: torch sees {seen}, cuda:0 and up")
    return device


def model_sizes(config: Any, task: str | Task) -> ModelSizes:
    """Sizes of a model, from its configuration alone."""
    text = config.get_text_config()
    outputs = config.num_labels if as_task(task).labelled else text.vocab_size
    return ModelSizes(
        outputs=int(outputs),
        hidden=int(text.hidden_size),
        layers=int(text.num_hidden_layers),
        declared=getattr(config, "tap_widths", None),
        peers=max(0, len(getattr(config, "members", ())) - 1),
        **_heads(text),
    )


def _heads(config: Any) -> dict[str, int]:
    """Heads of a text model's attention and their width, as far as its configuration tells."""
    heads = getattr(config, "num_attention_heads", None)
    if type(heads) is not int or heads < 1:
        return {}
    keys = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "true_hidden_size", None) or config.hidden_size  # MobileBERT narrows
    width = getattr(config, "head_dim", None) or inner // heads
    return {"heads": heads, "key_heads": int(keys), "head_width": int(width)}


def load_teacher(
    source: str | Path,
    *,
    task: str | Task,
    device: str = "auto",
    dtype: str = "fp32",
    trust_remote_code: bool = False,
) -> Teacher:
    """Load a teacher from a folder or hub name: safetensors only, sdpa attention, dropout off.

    Raises ModelError if it cannot be loaded or has no trained head for the task.
    """
    one_of("dtype", dtype, DTYPES)
    task = as_task(task)
    place = pick_device(device)
    config = load_config(source, trust_remote_code=trust_remote_code)
    require_direction(config, task, source)
    model = _load(source, task, config, dtype, trust_remote_code)
    model.eval().requires_grad_(False)
    identity = {
        "name": short_name(str(source)),
        "source": str(Path(source).resolve()) if Path(source).exists() else str(source),
        "class": type(model).__name__,
        "weights_sha256": weights_sha256(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": dtype,
        "attention": model.config._attn_implementation,
        "classes": class_names(config) if task.labelled else None,
        **function_of(model),
    }
    return Teacher(model.to(place), identity, model_sizes(model.config, task), place)


def _load(source: str | Path, task: Task, config: Any, dtype: str, trust: bool) -> Any:
    options = {
        "config": config,
        "dtype": DTYPES[dtype],
        "use_safetensors": True,
        "trust_remote_code": trust,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # `require_sizes` says which ones
    }
    auto = auto_class(task)
    try:
        try:
            model, info = auto.from_pretrained(str(source), attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, info = auto.from_pretrained(str(source), attn_implementation="eager", **options)
    except ModelError:
        raise
    except Exception as error:  # weights fail to load in as many ways as there are file formats
        raise ModelError(unreadable("teacher", source, error)) from error
    require_sizes(info, source)
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(
            f"{source} has no trained weights for {names}: it is no teacher for {task}; "
            "train it on the task first"
        )
    return model


def weights_sha256(model: Any) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes; one bit changes it."""
    return tensors_sha256(model.state_dict())


def tensors_sha256(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over every tensor's name, dtype, shape and bytes, in the order of their names."""
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        state.update(memoryview(flat.numpy()))
    return state.hexdigest()


def check_fit(teacher: Teacher, plan: Plan, tokens: Tokenizer, own: Tokenizer | None) -> None:
    """Raise ModelError if the plan's tokens, length or labels do not fit the teacher.

    `tokens` is the tokenizer of the plan, `own` that of the teacher, if it has one.
    """
    tokenizer, vocab = plan.config.tokenizer, teacher.model.config.get_text_config().vocab_size
    if own is None and vocab - tokenizer["vocab_size"] > SPARE_ROWS:
        raise ModelError(
            f"the tokenizer {tokenizer['name']} has {tokenizer['vocab_size']} tokens, the teacher "
            f"{teacher.identity['name']} {vocab}: plan with the teacher's own tokenizer; if it is, "
            "put its files into the teacher's folder"
        )
    other = own if own is not tokens else None
    if other and (apart := difference(token_map(tokens.plain), token_map(other.plain))):
        raise ModelError(
            f"the plan's tokenizer {tokenizer['name']} is not the tokenizer of the teacher "
            f"{teacher.identity['name']}: {apart}; plan with the teacher's own"
        )
    who = f"the teacher {teacher.identity['name']}"
    require_ids(plan, vocab, who, "plan with its own tokenizer, or leave the document out")
    limit, longest = most_tokens(teacher.model), int(plan.per_document["doc_len"].max())
    if limit is not None and longest > limit:
        raise ModelError(
            f"the teacher takes {limit} tokens, not {longest}; plan with --max-length {limit}"
        )
    require_token_types(teacher.model.config, plan, who)
    _check_labels(teacher, plan)


def most_tokens(model: Any) -> int | None:
    """Tokens a model takes at once; None if its configuration does not say."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            return int(len(module.weight) - padding - 1)  # RoBERTa counts on from the padding's
    limit = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0)
    return limit if limit > 0 else None  # -1: no limit, as in XLNet


def _check_labels(teacher: Teacher, plan: Plan) -> None:
    if not plan.task.labelled:
        return
    outputs, names, classes = (
        teacher.shape.outputs,
        teacher.identity["classes"],
        plan.config.classes,
    )
    planned, problem_type = plan.label_kind, problem_type_of(teacher.model.config)
    given = kind_of(problem_type, outputs)
    if given is not None and not planned.means(problem_type, outputs):
        raise ModelError(
            f"the teacher is a {given.called} ({outputs} outputs), and the plan's labels are for a "
            f"{planned.called}: plan with --label-type {given.label_type}, and the teacher's "
            "folder as --tokenizer"
        )
    if planned.wide and len(classes or ()) != outputs:
        raise ModelError(
            f"the plan has {len(classes or ())} labels a document and the teacher {outputs} "
            "outputs: plan with the teacher's folder as --tokenizer"
        )
    if classes is None:
        return
    if len(classes) > outputs:
        raise ModelError(f"the corpus has {len(classes)} classes; the teacher has {outputs}")
    if names and classes != names[: len(classes)] and classes != [str(i) for i in range(outputs)]:
        raise ModelError(
            f"the plan numbers its classes {', '.join(classes[:4])}, ... and the teacher "
            f"{', '.join(names[:4])}, ...: plan with the teacher's folder as --tokenizer"
        )
