"""Choosing on dev: the weights that score best are kept, on documents that nobody trained on."""

import json
import os
import signal

import numpy as np
import pytest
import transformers

from kdcache.documents import CachedDocuments
from kdcache.evaluator import evaluate
from kdcache.trainer import train
from tests.conftest import Lines, write_csv
from tests.test_trainer import assert_same_weights

EPOCH = 6  # steps, of 192 documents, where a fifth of the 240 is held out
STEADY = (
    "training.learning_rate=2e-3",
    "training.lr_scheduler_type=constant",
    "training.logging_steps=2",
    "training.num_train_epochs=3",
)
FIRST = {"recipe": "finetune", "init_from_teacher": [1, 2]}
CHOSEN = {**FIRST, "dev_split": "20%"}


class Rate(transformers.TrainerCallback):
    """Multiplies the learning rate when the first epoch is over."""

    def __init__(self, factor):
        self.factor = factor

    def on_epoch_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        if state.epoch == 1:
            lr_scheduler.base_lrs = [rate * self.factor for rate in lr_scheduler.base_lrs]
            for group in optimizer.param_groups:
                group["lr"] *= self.factor


def dev_of(folder):
    return json.loads((folder / "metrics.json").read_text("utf-8"))["dev"]


def values(dev):
    return [point["value"] for point in dev["points"]]


@pytest.fixture(scope="module")
def seen():
    """Documents that are read to be trained on, by run."""
    return set()


@pytest.fixture(scope="module")
def chosen(folder, cache, seen):
    """A student chosen on a fifth of the documents by epochs, and what was said on the way."""
    read, said = CachedDocuments.read, Lines()

    def noted(self, docs):
        seen.update(np.asarray(docs).tolist())
        return read(self, docs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedDocuments, "read", noted)
        result = train(cache, out=folder / "chosen", overrides=STEADY, progress=said, **CHOSEN)
    return result, said.said


@pytest.fixture(scope="module")
def held_out(folder, cache, sentences, seen, chosen):
    """A file of the documents that were not trained on."""
    held = np.setdiff1d(cache.plan.docs, sorted(seen))
    rows = cache.plan.examples["doc_id"][held]
    texts = [(sentences[row].text, sentences[row].package) for row in rows]
    return write_csv(folder / "held_out.csv", texts)


def test_the_scores_are_those_of_the_documents_that_nobody_trained_on(
    chosen, held_out, cache, classifier, seen
):
    dev = chosen[0].metrics["dev"]
    assert dev["documents"] == dev["left_out"] == 48 == len(cache.plan.docs) - len(seen)
    assert evaluate(chosen[0].folder, held_out)["accuracy"] == dev["best"]["value"]
    assert dev["best"]["value"] == max(values(dev)) > min(values(dev))
    assert evaluate(classifier, held_out)["accuracy"] == dev["teacher"]["value"]
    assert dev["teacher"]["source"] == "the cache's soft labels"
    assert [point["step"] for point in dev["points"]] == [EPOCH, 2 * EPOCH, 3 * EPOCH]
    assert (dev["metric"], dev["higher_is_better"], dev["stopped"]) == ("accuracy", True, None)
    assert dev_of(chosen[0].folder) == dev


def test_log_card_and_curves_tell_how_it_was_chosen(chosen, tmp_path):
    from kdcache.curves import draw_curves

    folder, dev = chosen[0].folder, chosen[0].metrics["dev"]
    log = json.loads((folder / "training_log.json").read_text("utf-8"))
    scored = [entry for entry in log if "eval_accuracy" in entry]
    assert [entry["eval_accuracy"] for entry in scored] == values(dev)
    assert {entry["eval_teacher_accuracy"] for entry in scored} == {dev["teacher"]["value"]}
    card = (folder / "README.md").read_text("utf-8")
    assert f"those of step {dev['best']['step']} " in card
    assert "on 48 dev documents that were not trained on" in card
    drawn = (folder / "curves.png").read_bytes()
    title = "finetune: chosen"
    draw_curves(log, tmp_path / "same.png", title=title, dev=dev)
    draw_curves(log, tmp_path / "alone.png", title=title, dev=dev | {"teacher": None})
    assert (tmp_path / "same.png").read_bytes() == drawn
    assert (tmp_path / "alone.png").read_bytes() != drawn


def test_scoring_does_not_change_how_a_student_is_trained(cache, chosen, held_out, tmp_path):
    """Of the split's documents in a file the same are left out; scored at other steps."""
    said = Lines()
    options = {**FIRST, "dev": held_out, "dev_every": 5, "overrides": STEADY, "progress": said}
    result = train(cache, out=tmp_path / "run", **options)
    left_out = "48 documents of the cache are left out of training: their text is in the dev set"
    assert said.said == [left_out]
    assert [point["step"] for point in dev_of(result.folder)["points"]] == [5, 10, 15, 18]
    one, other = (
        [
            entry["loss"]
            for entry in json.loads((run / "training_log.json").read_text("utf-8"))
            if "loss" in entry
        ]
        for run in (chosen[0].folder, result.folder)
    )
    assert one == other


@pytest.mark.parametrize(("factor", "stopped"), [(300, None), (1e30, "diverged")])
def test_a_rate_that_ruins_a_run_after_its_first_epoch_keeps_that_epochs_weights(
    factor, stopped, causal_cache, tmp_path
):
    said, more = Lines(), ("training.max_grad_norm=0", "training.per_device_train_batch_size=8")
    options = {**CHOSEN, "overrides": [*STEADY, *more]}
    ruined = train(
        causal_cache, out=tmp_path / "ruined", callbacks=[Rate(factor)], progress=said, **options
    )
    once = [*options.pop("overrides"), "training.num_train_epochs=1"]
    first = train(causal_cache, out=tmp_path / "first", overrides=once, **options)
    dev = ruined.metrics["dev"]
    assert_same_weights(ruined.folder, first.folder)
    assert dev["best"] == first.metrics["dev"]["best"] == dev["points"][0]
    assert (dev["metric"], dev["higher_is_better"], dev["stopped"]) == (
        "cross_entropy",
        False,
        stopped,
    )
    assert not any(value < dev["best"]["value"] + 1 for value in values(dev)[1:])
    kept = f"the weights of step {dev['best']['step']}, the best on dev, are kept"
    assert any(kept in line for line in said.said) == (stopped is not None)


def stop():
    raise RuntimeError("stopped")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


class AtTheEnd(transformers.TrainerCallback):
    def on_train_end(self, *args, **kwargs):
        stop()
