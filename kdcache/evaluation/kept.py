"""What a model says of documents, kept as the few numbers that each adds to its score."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from kdcache.errors import ModelError
from kdcache.evaluation.scoring import Predictions, main_score, scores
from kdcache.manifest import Json
from kdcache.plans import Docs, Plan
from kdcache.store.io.durable_writes import replace_synced
from kdcache.tasks.summed import Sums


class Kept(NamedTuple):
    """What is kept of a model.

    Attributes:
        documents: numbers in the corpus of those that have labels, [N] rising.
        adds: what each adds to the score by which slices are told apart, [N, K].
        scores: every metric, of all documents.
    """

    documents: Docs
    adds: Sums
    scores: Json


def keep(path: Path, plan: Plan, found: Predictions) -> None:
    """Keep what a model says of a plan's documents in the file `path`; its folder is made."""
    made, documents = main_score(plan, found)
    told, data = json.dumps(scores(plan, found)), io.BytesIO()
    np.savez(data, documents=documents, adds=made.adds, scores=np.asarray(told))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, data.getvalue())


def read_kept(path: Path) -> Kept | None:
    """What was kept in a file; None: there is none. ModelError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as held:
            return Kept(held["documents"], held["adds"], json.loads(str(held["scores"])))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ModelError(f"{path} is damaged: {error}; remove it") from error
