"""Run the model in this folder on texts; needs onnxruntime, tokenizers and numpy only.

    python infer.py "a text" "another text"
    python infer.py --pair "a question" "its passage"
    python infer.py < texts.txt

From standard input, in UTF-8, a line that is not empty is a text, or two with a tab between for a
model of pairs. Prints a line of JSON for each: its label and the probability of every label, or its
value; of a model of several labels, or values, those it has. As a module:

    from infer import Model
    Model().predict(["a text", "another text"])
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
LONG = 16  # times the tokens a text may have: a pair with more characters is cut before it is read


class Model:
    """The model of a folder that `kdcache ship` wrote, for the CPU.

    `threads` are those of a call; None: one for each core.
    """

    def __init__(self, folder: str | Path = HERE, threads: int | None = None) -> None:
        folder = Path(folder)
        self.settings = json.loads((folder / "inference.json").read_text("utf-8"))
        self.labels: list[str] = self.settings["labels"]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(
            self.settings["max_length"], direction=self.settings["truncation_side"]
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {given.name for given in self.session.get_inputs()}

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 1
    ) -> list[dict[str, Any]]:
        """Label and probabilities of each text, or its value where the model gives one; several of
        them where it gives several.

        `pairs` are the second texts of a model of pairs. In int8 a batch of several rounds all of
        its texts alike, so that the outputs for one depend a little on the others.
        """
        logits = self.logits(texts, pairs, batch_size)
        return MEANINGS[self.settings["problem"]](self.labels, logits)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 1
    ) -> npt.NDArray[np.float32]:
        """What the model says of each text, [texts, labels]."""
        encoded = self.encode(texts, pairs)
        size = batch_size if self.settings["padded"] else 1  # some models read their pads
        logits = np.empty((len(encoded), len(self.labels)), np.float32)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            logits[chosen] = self.run([encoded[i] for i in chosen])
        return logits

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[Any]:
        """The tokens of each text or pair, cut to what the model takes."""
        if isinstance(texts, str) or isinstance(pairs, str):
            raise TypeError("texts are a list of strings, and so are pairs")
        if pairs is None:
            encoded = self.tokenizer.encode_batch(list(texts))
        else:
            encoded = self.tokenizer.encode_batch(
                [self._cut(*pair) for pair in zip(texts, pairs, strict=True)]
            )
        for number, found in enumerate(encoded):
            if not found.ids:
                raise ValueError(f"text {number} (0 is the first) has no token")
        return list(encoded)

    def run(self, encoded: Sequence[Any]) -> npt.NDArray[np.float32]:
        """The logits of one padded batch."""
        rows = {
            "input_ids": (self.settings["pad_id"], [e.ids for e in encoded]),
            "attention_mask": (0, [[1] * len(e.ids) for e in encoded]),
            "token_type_ids": (0, [e.type_ids for e in encoded]),
        }
        feed = {name: padded(*rows[name]) for name in self.inputs}
        logits: npt.NDArray[np.float32] = self.session.run(None, feed)[0]
        return logits

    def _cut(self, first: str, second: str) -> tuple[str, str]:
        """A pair without most of what truncation drops anyway.

        Of a long pair, tokenizers list every combination of what was cut off the one text and off
        the other: gigabytes. The longer text stays the longer one: it gives the odd token.
        """
        length = self.settings["max_length"]
        if max(len(first), len(second)) <= LONG * length:
            return first, second
        pieces = [self._pieces(text) for text in (first, second)]
        one, other = (sum(len(piece.ids) for piece in text) for text in pieces)
        more = one > other
        left = self.settings["truncation_side"] == "left"
        return (
            head(first, pieces[0], 2 + more, left),
            head(second, pieces[1], 3 - more, left),
        )

    def _pieces(self, text: str) -> list[Any]:
        found = self.tokenizer.encode(text, add_special_tokens=False)
        return [found, *found.overflowing]


def head(text: str, pieces: list[Any], count: int, left: bool) -> str:
    """The characters of the first `count` pieces of a text: of its end, if cut on the left."""
    if len(pieces) <= count:
        return text
    offsets = [offset for piece in pieces[:count] for offset in piece.offsets]
    if left:
        return text[min(start for start, _ in offsets) :]
    return text[: max(end for _, end in offsets)]


def padded(pad: int, rows: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Rows of any length as one array, [rows, longest]."""
    table = np.full((len(rows), max(map(len, rows))), pad, np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Probabilities of the labels, [texts, labels]."""
    raised = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    chances: npt.NDArray[np.float64] = raised / raised.sum(1, keepdims=True)
    return chances


def sigmoid(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The probability of each label by itself, [texts, labels]."""
    chances: npt.NDArray[np.float64] = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
    return chances


def one_label(labels: list[str], logits: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """The likeliest label of each text, and the probabilities of all."""
    return [
        {
            "label": labels[int(row.argmax())],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in softmax(logits)
    ]


def several_labels(labels: list[str], logits: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """The labels of each text that are likelier than not, and the probability of each."""
    return [
        {
            "labels": [name for name, chance in zip(labels, row, strict=True) if chance > 0.5],
            "probabilities": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in sigmoid(logits)
    ]


def one_value(labels: list[str], logits: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """The value of each text."""
    return [{"value": float(value)} for value in logits[:, 0]]


def several_values(labels: list[str], logits: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    """The values of each text by name."""
    return [{"values": dict(zip(labels, row.tolist(), strict=True))} for row in logits]


MEANINGS = {
    "classes": one_label,
    "multi-label": several_labels,
    "regression": one_value,
    "vectors": several_values,
}
"""What is said of a model's outputs, by the kind of its labels."""


def lines(texts: int | None) -> Iterator[list[str]]:
    """The documents of standard input, of one or two `texts`; None, not known: of one."""
    for line in sys.stdin:
        if text := line.rstrip("\r\n"):
            yield text.split("\t", 1) if texts == 2 else [text]


def main() -> None:
    """Print what the model says of the texts of the command line, or of standard input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--pair", action="store_true", help="Two texts make one pair.")
    given = parser.parse_args()
    if given.pair and len(given.texts) != 2:
        parser.error(f"--pair takes two texts; got {len(given.texts)}")
    if hasattr(signal, "SIGPIPE"):  # end quietly where nobody reads on, as head does
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    streams: tuple[Any, ...] = (sys.stdin, sys.stdout)
    for stream in streams:  # whatever encoding the system has
        stream.reconfigure(encoding="utf-8", errors="replace")
    model = Model()
    wanted = model.settings["texts"]
    given.texts = [os.fsencode(text).decode("utf-8", "replace") for text in given.texts]
    documents = [given.texts] if given.pair else [[text] for text in given.texts]
    for document in documents or lines(wanted):
        if wanted is None and not documents and "\t" in document[0]:
            parser.error(
                "a line has a tab, and whether this model reads one text or a pair is not known: "
                "ship it with --text-column, given once or twice, or take the tab out"
            )
        if wanted not in (None, len(document)):
            parser.error(f"this model reads {wanted} text(s) at a time; got {len(document)}")
        prediction = model.predict(document[:1], document[1:] or None)[0]
        print(json.dumps(prediction, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
