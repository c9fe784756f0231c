"""Time a shipped model in a process of its own, then run it on every text.

    python -P worker.py FOLDER TEXTS.json LOGITS.npy

Of kdcache only what reads the process's memory is imported, and of the folder its `infer.py`. TEXTS
holds "texts", "pairs" (or null) and "timed", the places of those that are timed. Prints the number
of texts that are done, a line now and then, and at last the figures in JSON.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from kdcache.memory import peak_rss_bytes

WARM_UP = 20
CHUNK = 64  # texts between two lines of progress


def main(folder: str, texts: str, logits: str) -> None:
    """Measure the model of a folder; its logits go to the file `logits`."""
    spec = importlib.util.spec_from_file_location("infer", Path(folder) / "infer.py")
    assert spec is not None
    assert spec.loader is not None
    infer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(infer)
    given = json.loads(Path(texts).read_text("utf-8"))
    model = infer.Model(folder, threads=1)
    figures = measure(model, given)
    np.save(logits, run_all(model, given))
    print(json.dumps(figures), flush=True)


def measure(model: Any, given: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of a call for one text, one thread, and the memory that took."""
    single = [_chosen(given, [place]) for place in given["timed"]]
    whole = timed(lambda given: model.predict(*given), single)
    tokens = timed(lambda given: model.encode(*given), single)
    return {
        "p50_ms": float(np.percentile(whole, 50)),
        "p95_ms": float(np.percentile(whole, 95)),
        "tokenise_p50_ms": float(np.percentile(tokens, 50)),
        "peak_bytes": peak_rss_bytes(),
    }


def timed(call: Callable[[Any], Any], calls: Sequence[Any]) -> list[float]:
    """Milliseconds of each call, after some that are not counted."""
    for given in calls[:WARM_UP]:
        call(given)
    taken = []
    for given in calls:
        started = time.perf_counter()
        call(given)
        taken.append(1000 * (time.perf_counter() - started))
    return taken


def run_all(model: Any, given: dict[str, Any]) -> Any:
    """The logits of every text, one at a time as an application has them, [texts, labels].

    Each core takes texts of its own: one text is too little work for several.
    """
    total, rows = len(given["texts"]), []
    chunks = [range(start, min(start + CHUNK, total)) for start in range(0, total, CHUNK)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda places: model.logits(*_chosen(given, places)), chunks):
            rows.append(found)
            print(len(found), flush=True)
    return np.concatenate(rows)


def _chosen(given: dict[str, Any], places: Sequence[int]) -> tuple[list[str], list[str] | None]:
    pairs = given["pairs"]
    texts = [given["texts"][place] for place in places]
    return texts, None if pairs is None else [pairs[place] for place in places]


if __name__ == "__main__":
    main(*sys.argv[1:])
