"""AD-KD (Wu et al. 2023): attributions of both models, and soft labels at a falling temperature."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn

from kdcache.losses import Attribution, Moment, Pair, Schedule, SoftKL
from kdcache.losses.schedules import numbers
from kdcache.models import run
from kdcache.plans.batch import Batch
from kdcache.signals import LOGITS, Activations, Attributing, Tap
from tests.methods import Found, Given, batch_of, dense, entropy, layer_rows, one_each, value


class Block(nn.Module):
    """The classifier of the files, which reads the mean of all tokens into each."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = weights

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        share = mask[..., None].to(states.dtype) / mask.sum(1)[:, None, None]
        inner = torch.tanh(states @ self.first.T)
        context = (share * inner).sum(1, keepdim=True)
        outer = torch.tanh((inner * (1 + context)) @ self.second.T)
        return (share * outer).sum(1) @ self.last.T


class Model(transformers.PreTrainedModel):
    """The classifier as transformers would have it: a row of embeddings for each id."""

    def __init__(self, given: Given, side: str, share: float) -> None:
        weights = [given[f"{side}_w{place}"] for place in (1, 2, 3)]
        embeddings = share * given[f"{side}_emb"].flatten(0, 1)
        config = transformers.PretrainedConfig(num_labels=len(weights[2]), pad_token_id=0)
        config.update({"vocab_size": len(embeddings) + 1, "num_hidden_layers": 1})
        super().__init__(config)
        self.blocks = nn.ModuleList([Block(weights)])
        self.rows = torch.cat([torch.zeros_like(embeddings[:1]), embeddings])

    def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
        states = self.rows[input_ids]
        logits = self.blocks[0](states, attention_mask)
        return SimpleNamespace(logits=logits, hidden_states=(states,))


def said(given: Given, side: str, *taps: Tap, share: float = 1.0) -> Activations:
    """What one of the models says of the documents of a case, at a share of their embeddings."""
    batch: Batch = batch_of(given.lengths, given["labels"] if "labels" in given.arrays else None)
    batch["input_ids"] = torch.arange(1, batch.mask.numel() + 1).view(batch.mask.shape)
    return run(Model(given, side, share), batch, taps, task="text-classification")


def by_view(found: Activations, tap: Tap) -> torch.Tensor:
    """Attributions as the files have them, [views, B, L]."""
    return found[tap].permute(2, 0, 1)


def how_of(given: Given) -> Attributing:
    """The way of the teacher's attributions."""
    views = {"ce": "one", "all": "all"}[given.text("views")] if "views" in given.arrays else "all"
    steps = int(given.number("ig_steps")) if "ig_steps" in given.arrays else 1
    return Attributing(views=views, ig_steps=steps, topk=int(given.number("topk")))


def attributions(given: Given) -> Found:
    """The loss of both models' attributions, of each side in its way."""
    how = how_of(given)
    loss = Attribution(views=how.views, ig_steps=how.ig_steps)
    theirs, ours = Tap("attribution", how=how), Tap("attribution", how=replace(how, topk=None))
    with torch.no_grad():
        teacher = said(given, "t", theirs)
    student = said(given, "s", ours)
    pair = Pair(student.rows(ours), layer_rows(teacher.rows(theirs)))
    steps = [gradients(given, (k + 1) / how.ig_steps) for k in range(how.ig_steps)]
    every = sum(steps) / len(steps) / len(given.lengths)
    chosen = given["labels"], torch.arange(len(given.lengths))
    parts = {
        "out_t_attribution": by_view(teacher, theirs),
        "out_s_attribution": by_view(student, ours),
        "out_t_gradient": every if how.views == "all" else every[chosen][None],
    }
    return Found(loss=value(loss, [pair], given.lengths), parts=parts)


def gradients(given: Given, share: float) -> torch.Tensor:
    """The teacher's gradient of -log p of each class by way of the logits' own, [C, B, L, H]."""
    whole = Tap("jacobian")
    with torch.no_grad():
        found = said(given, "t", whole, LOGITS, share=share)
    logits = found[LOGITS]
    own = found[whole].unflatten(-1, (logits.shape[1], -1)).permute(2, 0, 1, 3)
    mean = torch.einsum("bc,cblh->blh", logits.softmax(-1), own)
    return mean - own


def jacobian(given: Given) -> Found:
    """Every logit's own gradient, and what attributions by it are."""
    theirs, whole = Tap("attribution", how=how_of(given)), Tap("jacobian")
    with torch.no_grad():
        teacher = said(given, "t", theirs, whole, LOGITS)
    own = teacher[whole].unflatten(-1, (teacher[LOGITS].shape[1], -1)).permute(2, 0, 1, 3)
    parts = {
        "out_jacobian": own,
        "out_logits": teacher[LOGITS],
        "out_t_attribution": by_view(teacher, theirs),
    }
    return Found(loss=teacher[theirs].sum(), parts=parts)


def falling(given: Given) -> Found:
    """Cross-entropy at the temperature of an epoch: divergence and the teacher's own entropy."""
    schedule = Schedule(start=given.number("temperature"), stop=1.0, per="epoch")
    epoch, epochs = int(given.number("epoch")), int(given.number("epochs"))
    now = schedule.at(Moment(epoch, epochs, epoch, epochs))
    loss = numbers(SoftKL(t_squared=False), {"temperature": now})
    pair = Pair(given["s_logits"], dense(given["t_logits"]))
    found = value(loss, [pair], one_each(len(given["s_logits"])), space="document")
    parts = {"out_temperature_now": torch.tensor(now, dtype=given.dtype)}
    return Found(loss=found + entropy(given["t_logits"], now).mean(), parts=parts)


CASES = {"ad_kd": attributions, "ad_kd.jacobian": jacobian, "ad_kd.kd_anneal": falling}
