"""DistilBERT (Sanh et al. 2019): soft labels and true tokens of masked positions, directions."""

import torch

from kdcache.losses import Cosine, Hard, Pair, SoftKL
from tests.methods import Found, Given, dense, layer_rows, tokens, value


def objective(given: Given) -> Found:
    """Soft labels at all positions or the masked ones, true tokens, hidden states of the last."""
    lengths, labels = given.lengths, tokens(given["mlm_labels"], given.lengths)
    logits, theirs = (tokens(given[name], lengths) for name in ("s_logits", "t_logits"))
    masked = labels >= 0
    chosen = masked if given.number("restrict_ce_to_mask") else torch.ones_like(masked)
    states = Pair(
        tokens(given["s_hidden"], lengths), layer_rows(tokens(given["t_hidden"], lengths))
    )
    # Rows are documents of one token each here, for they are some of the tokens.
    soft = Pair(logits[chosen], dense(theirs[chosen]))
    ones = torch.ones_like(labels)
    parts = {
        "kd": value(SoftKL(temperature=given.number("temperature")), [soft], ones[chosen]),
        "mlm": value(Hard(), [Pair(logits, labels)], ones, labels=labels),
        "cos": value(Cosine(positions="all"), [states], lengths),
    }
    weights = {"kd": "ce", "mlm": "mlm", "cos": "cos"}
    loss = [given.number(f"alpha_{weights[name]}") * found for name, found in parts.items()]
    return Found(
        loss=torch.stack(loss).sum(), parts={f"out_{name}": part for name, part in parts.items()}
    )


CASES = {"distilbert": objective}
