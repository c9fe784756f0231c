"""Texts, or pairs of them, with a class or a value each."""

from kdcache.tasks.base import Task

TEXT_CLASSIFICATION = Task(
    name="text-classification",
    auto="AutoModelForSequenceClassification",
    heads=("ForSequenceClassification",),
    rows="document",
    kinds=(),
    signals=("logits:dense",),
    pipeline="text-classification",
    call='pipe("a text to classify", truncation=True)',
    measured="masked-lm",  # its hidden states; classes are small and exact
    pairs=True,
    taught=True,
    shipped=True,
    predicted=True,
)
