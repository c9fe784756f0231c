"""Texts whose every next token is predicted from those before it."""

from kdcache.tasks.base import Task

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
    windows=True,
    causal=True,
)
