"""Text smoothing (Wu et al. 2020): inputs between tokens and what could stand in their place."""

import torch
from torch.nn.functional import linear

from kdcache.inputs import Asked, Smooth
from kdcache.losses import Hard, Pair
from kdcache.signals import SoftLabels
from tests.methods import Found, Given, dense, one_each, tokens, value


def smoothing(given: Given) -> Found:
    """A toy classifier reads the mean of the smoothed embeddings.

    The loss of the file is of the whole distribution, as logits:dense holds it; its likeliest
    words are told apart both by the cache, as logits:topk does, and by k.
    """
    logits, ids = (tokens(given[name], given.lengths) for name in ("mlm_logits", "input_ids"))
    lam, temperature = given.number("lam"), given.number("temperature")
    whole, k = dense(logits), int(given.number("topk"))
    likeliest, places = whole.logprobs.topk(k)
    stored = SoftLabels(ids=places, logprobs=likeliest, tail_logmass=torch.zeros(len(ids)))

    def embed(words: SoftLabels, k: int = 0) -> torch.Tensor:
        way = Smooth(lam=lam, temperature=temperature, k=k)
        return way.embed(Asked(table=given["s_embedding"], ids=ids, words=words))

    few, all_ = embed(stored), embed(whole)
    torch.testing.assert_close(embed(whole, k), few)
    sums = torch.stack([rows.sum(0) for rows in all_.split(given.lengths.tolist())])
    outputs = linear(sums / given.lengths.unsqueeze(1), given["w"])
    labels = given["labels"]
    loss = value(
        Hard(), [Pair(outputs, labels)], one_each(len(labels)), space="document", labels=labels
    )
    shares = (likeliest / temperature).softmax(1)
    parts = {"out_embedding": all_, "out_embedding_topk": few}
    parts |= {"out_topk_id": places, "out_topk_prob": shares}
    there = torch.arange(given["input_ids"].shape[1])[None] < given.lengths[:, None]
    return Found(
        loss=loss, parts={name: padded(rows, given, there, name) for name, rows in parts.items()}
    )


def padded(rows: torch.Tensor, given: Given, there: torch.Tensor, name: str) -> torch.Tensor:
    """Rows of tokens where they stand in [B, L, ...]; what the file has at pads stays there."""
    made = torch.from_numpy(given.arrays[name].copy()).to(rows.dtype)
    made[there] = rows
    return made


CASES = {"text_smoothing": smoothing}
