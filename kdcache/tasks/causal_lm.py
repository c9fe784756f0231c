"""Texts whose every next token is predicted from those before it."""

from functools import partial

from kdcache.tasks.base import Task, encode_texts

CAUSAL_LM = Task(
    name="causal-lm",
    auto="AutoModelForCausalLM",
    heads=("ForCausalLM", "LMHeadModel"),
    rows="token",
    kinds=("tokens",),
    signals=("logits:topk,k=64",),
    pipeline="text-generation",
    call='pipe("the beginning of a text", max_new_tokens=20)',
    measured="causal-lm",
    encode=partial(encode_texts, windows=True),
    causal=True,
)
