"""Students of a teacher's layers compute what those layers compute, in every architecture."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from kdcache.errors import ConfigError, ModelError
from kdcache.models.auto import auto_class
from kdcache.models.blocks import copy_blocks, require_same_states, shrunk_config
from kdcache.models.depth import cut
from kdcache.plans.batch import Batch

VOCABULARY, DEPTH = 96, 4
WIDTHS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.4,
}
ENCODER = {**WIDTHS, "max_position_embeddings": 64, "type_vocab_size": 1}
DECODER = {**WIDTHS, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 8}
GPT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_head": 2,
    "n_layer": DEPTH,
    "n_positions": 64,
    "initializer_range": 0.4,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("masked-lm", ENCODER),
    "roberta": ("masked-lm", ENCODER),
    "electra": ("text-classification", {**ENCODER, "embedding_size": 8}),
    "distilbert": (
        "text-classification",
        {"vocab_size": VOCABULARY, "dim": 16, "n_layers": DEPTH, "n_heads": 2, "hidden_dim": 24},
    ),
    "modernbert": ("masked-lm", {**WIDTHS, "local_attention": 8, "global_attn_every_n_layers": 2}),
    "longformer": ("masked-lm", {**ENCODER, "attention_window": [4, 8, 16, 32]}),
    "deberta-v2": ("masked-lm", {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c"]}),
    "gpt2": ("causal-lm", GPT),
    "gpt_neo": (
        "causal-lm",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_layers": DEPTH,
            "num_heads": 2,
            "window_size": 4,
            "attention_types": [[["global", "local"], 2]],
            "initializer_range": 0.4,
        },
    ),
    "llama": ("causal-lm", DECODER),
    "llama4_text": (
        "causal-lm",
        {
            **DECODER,
            "intermediate_size_mlp": 24,
            "num_local_experts": 2,
            "moe_layers": [1, 3],
            "no_rope_layers": [1, 0, 1, 0],
            "attention_chunk_size": 8,
        },
    ),
    "smollm3": ("causal-lm", {**DECODER, "no_rope_layer_interval": 2}),
    "qwen2": (
        "causal-lm",
        {**DECODER, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("causal-lm", DECODER),
    "gemma2": ("causal-lm", {**DECODER, "sliding_window": 4}),
    "gemma3_text": ("causal-lm", {**DECODER, "sliding_window": 4, "sliding_window_pattern": 2}),
    "mixtral": ("causal-lm", {**DECODER, "num_local_experts": 2, "sliding_window": 4}),
    "qwen2_moe": (
        "causal-lm",
        {
            **DECODER,
            **EXPERTS,
            "shared_expert_intermediate_size": 8,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
        },
    ),
    "qwen3_moe": ("causal-lm", {**DECODER, **EXPERTS, "mlp_only_layers": [0, 2]}),
    "glm4_moe": (
        "causal-lm",
        {
            **DECODER,
            "moe_intermediate_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 2,
        },
    ),
    "granite_swa": ("causal-lm", {**DECODER, "layer_rope_theta": [1e2, 1e3, 1e4, 1e5]}),
    "recurrent_gemma": (
        "causal-lm",
        {**DECODER, "block_types": ["recurrent", "attention"], "lru_width": 16},
    ),
}
CHOSEN = [(1, 4), (2, 3), (2, 4)]
LIKE_THE_FIRST = {"modernbert"}  # whose first block lacks a norm that the others have
ASKED_IN_LOOPS = {"layer_types", "layer_rope_theta"}


def teacher_of(kind: str, task: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(kind, **{**TOKENS, **options})
    return auto_class(task).from_config(config).eval()


def document(task: str) -> Batch:
    ids = torch.arange(3, 3 + 40)[None]
    batch = Batch(docs=torch.tensor([0]), input_ids=ids, attention_mask=torch.ones_like(ids))
    if task == "masked-lm":
        batch["selected"] = torch.arange(0, 40, 3)
    return batch


def student_of(teacher: Any, task: str, layers: tuple[int, ...]) -> Any:
    student = auto_class(task).from_config(shrunk_config(teacher.config, layers))
    copy_blocks(teacher, student, layers)
    require_same_states(teacher, student, layers, task, document(task))
    return student.eval()


def by_hand(teacher: Any, layers: tuple[int, ...]) -> Any:
    """The teacher with lists of modules cut, and what its loop over them asks the configuration."""
    cut_down, depth = copy.deepcopy(teacher), teacher.config.num_hidden_layers
    for module in list(cut_down.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                setattr(module, name, nn.ModuleList([child[layer - 1] for layer in layers]))
    config = cut_down.config
    for name in ASKED_IN_LOOPS & set(vars(config)):
        setattr(config, name, [getattr(config, name)[layer - 1] for layer in layers])
    config.num_hidden_layers = len(layers)
    return cut_down


def settings(model: Any) -> dict[str, Any]:
    return {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}


def outputs_of(model: Any) -> list[torch.Tensor]:
    model.config.use_cache = False
    with torch.no_grad():
        out = model(document("")["input_ids"], output_hidden_states=True)
    return [*out.hidden_states, out.logits]


FEW = {"bert", "gpt_neo", "smollm3", "longformer", "gemma3_text", "qwen2_moe"}
"""Families that are tried each time, one of every way to tell layers apart."""
KINDS = [pytest.param(kind, marks=() if kind in FEW else pytest.mark.slow) for kind in FAMILIES]


@pytest.mark.parametrize("kind", KINDS)
def test_students_of_layers_say_what_the_layers_say(kind: str, tmp_path: Path) -> None:
    task, options = FAMILIES[kind]
    teacher = teacher_of(kind, task, options)
    for layers in CHOSEN[: 1 if kind in LIKE_THE_FIRST else None]:
        student = student_of(teacher, task, layers)
        student.save_pretrained(tmp_path)
        loaded = auto_class(task).from_pretrained(tmp_path).eval()
        assert settings(loaded) == settings(student)
        wanted = outputs_of(by_hand(teacher, layers))
        for model in (student, loaded):
            for ours, theirs in zip(outputs_of(model), wanted, strict=True):
                torch.testing.assert_close(
                    ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max())
                )


WRONG: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layers": [1, 0]},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1]],
        "attention_layers": ["global", "local"],
    },
    "longformer": {"attention_window": [4, 8]},
    "qwen2": {"layer_types": ["full_attention", "full_attention"]},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "granite_swa": {"layer_rope_theta": [1e2, 1e3]},
    "recurrent_gemma": {"hidden_activation": "relu"},
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_student_that_says_something_else_is_found_out(kind: str) -> None:
    task, options = FAMILIES[kind]
    teacher = teacher_of(kind, task, options)
    record = shrunk_config(teacher.config, (2, 3)).to_dict()
    student = auto_class(task).from_config(type(teacher.config).from_dict(record | WRONG[kind]))
    copy_blocks(teacher, student, (2, 3))
    with pytest.raises(ModelError, match=r"of the teacher's blocks 2-3 alone .* differ .*--config"):
        require_same_states(teacher, student, (2, 3), task, document(task))


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("masked-lm", {**ENCODER, "embedding_size": 8}),  # one block, many times
    "gpt2": ("causal-lm", {**GPT, "scale_attn_by_inverse_layer_idx": True}),
    "modernbert": FAMILIES["modernbert"],  # no norm in the first block
    "deberta-v2": ("masked-lm", {**ENCODER, "relative_attention": True, "conv_kernel_size": 3}),
    "flaubert": (
        "masked-lm",
        {"vocab_size": VOCABULARY, "emb_dim": 16, "n_layers": DEPTH, "n_heads": 2},
    ),
    "funnel": (
        "masked-lm",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "n_head": 2,
            "d_head": 8,
            "d_inner": 24,
            "block_sizes": [2, 2],
        },
    ),
    "jamba": (
        "causal-lm",
        {
            **WIDTHS,
            "num_key_value_heads": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
        },
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_blocks_that_hang_on_their_place_are_refused(kind: str) -> None:
    task, options = REFUSED[kind]
    teacher = teacher_of(kind, task, options)
    with pytest.raises(ModelError, match="--config") as refused:
        student_of(teacher, task, (2, 3))
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_comparing_leaves_models_and_generators_as_they_were() -> None:
    teacher = teacher_of("bert", "text-classification", ENCODER).train()
    student = auto_class("text-classification").from_config(shrunk_config(teacher.config, (2, 3)))
    student.train().bert.encoder.layer[0].eval()
    copy_blocks(teacher, student, (2, 3))
    before, logits = torch.random.get_rng_state(), outputs_of(copy.deepcopy(teacher).eval())[-1]
    require_same_states(teacher, student, (2, 3), "text-classification", document(""))
    assert torch.equal(before, torch.random.get_rng_state())
    assert teacher.training
    assert student.training
    assert not student.bert.encoder.layer[0].training
    assert torch.equal(outputs_of(teacher.eval())[-1], logits)


def test_what_a_configuration_says_layer_by_layer_is_cut() -> None:
    record: dict[str, Any] = {
        "layer_types": ["a", "b", "c", "d"],
        "intermediate_size": (1, 2, 3, 4),
        "attention_window": 8,
        "no_rope_layers": [1, 0, 1, 0],
        "mlp_only_layers": [1, 2],
        "moe_layers": [0, 1, 2, 3],
        "per_layer_config": {"01": {"x": 1}, "2": {"x": 2}},
        "first_k_dense_replace": 2,
        "num_kv_shared_layers": 1,
        "attention_types": [[["g", "l"], 2]],
        "block_types": ["r", "r", "a"],
        "eos_token_id": [1, 2, 3, 4],
        "mtp_layer_types": ["a", "b", "c", "d"],
        "rope_parameters": {"theta": 1.0},
        "local_layer_ids": None,
    }
    assert cut(record, 4, (2, 4)) == record | {
        "layer_types": ["b", "d"],
        "intermediate_size": [2, 4],
        "no_rope_layers": [0, 0],
        "mlp_only_layers": [0],
        "moe_layers": [0, 1],
        "per_layer_config": {"0": {"x": 1}},
        "first_k_dense_replace": 1,
        "attention_types": [[["l"], 1], [["l"], 1]],
        "block_types": ["r", "r"],
    }
    every_third = {"decoder_sparse_step": 3, "mlp_only_layers": [5]}
    assert cut(every_third, 6, (3, 5, 6)) == {"decoder_sparse_step": 1, "mlp_only_layers": [1, 2]}
    flags = {"no_rope_layers": [0, 1], "mlp_only_layers": [0, 1]}
    assert cut(flags, 2, (2,)) == {"no_rope_layers": [1], "mlp_only_layers": [0]}


def test_a_configuration_that_cannot_be_shallower_is_refused() -> None:
    config = transformers.AutoConfig.for_model("funnel", block_sizes=[2, 2])
    with pytest.raises(ModelError, match="a funnel of the teacher's blocks 1-2 alone does not"):
        shrunk_config(config, (1, 2))
    with pytest.raises(ConfigError, match="rising layers from 1 to 4; got 1-5"):
        shrunk_config(config, (1, 5))
