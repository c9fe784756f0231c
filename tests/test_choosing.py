"""Choosing on dev: the weights that score best are kept, on documents that nobody trained on."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import transformers

from kdcache.building.builder import build
from kdcache.errors import ConfigError, MismatchError
from kdcache.evaluation.evaluator import evaluate
from kdcache.models import StudentSpec
from kdcache.models.student import student_config
from kdcache.progress import quiet
from kdcache.training.dev import make_dev
from kdcache.training.dev_options import DevOptions
from kdcache.training.documents import CachedDocuments
from kdcache.training.train import train
from tests.conftest import Lines, write_csv
from tests.test_trainer import Watcher, assert_same_weights

SLOW = pytest.mark.slow
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
    """A student chosen on a fifth of the documents by epochs, and the messages on the way."""
    read, progress = CachedDocuments.read, Lines()

    def noted(self, docs):
        seen.update(np.asarray(docs).tolist())
        return read(self, docs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CachedDocuments, "read", noted)
        result = train(cache, out=folder / "chosen", overrides=STEADY, progress=progress, **CHOSEN)
    return result, progress.messages


@pytest.fixture(scope="module")
def held_out(folder, cache, sentences, seen, chosen):
    """A file of the documents that were not trained on."""
    held = np.setdiff1d(cache.plan.docs, sorted(seen))
    rows = cache.plan.per_document["doc_id"][held]
    texts = [(sentences[row].text, sentences[row].package) for row in rows]
    return write_csv(folder / "held_out.csv", texts)


def test_the_scores_are_those_of_the_documents_that_nobody_trained_on(
    chosen, held_out, cache, classifier, seen
):
    dev = chosen[0].metrics["dev"]
    assert dev["documents"] == dev["left_out"] == 48 == len(cache.plan.docs) - len(seen)
    assert evaluate(chosen[0].folder, held_out)["accuracy"] == dev["best"]["value"]
    assert dev["best"]["value"] == max(values(dev)) > min(values(dev))
    assert evaluate(classifier, held_out, max_length=48)["accuracy"] == dev["teacher"]["value"]
    assert dev["teacher"]["source"] == "the cache's soft labels"
    assert [point["step"] for point in dev["points"]] == [EPOCH, 2 * EPOCH, 3 * EPOCH]
    assert (dev["metric"], dev["higher_is_better"], dev["stopped"]) == ("accuracy", True, None)
    assert dev_of(chosen[0].folder) == dev


def test_log_card_and_curves_tell_how_it_was_chosen(chosen, tmp_path):
    from kdcache.training.curves import draw_curves

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
    progress = Lines()
    options = {**FIRST, "dev": held_out, "dev_every": 5, "overrides": STEADY, "progress": progress}
    result = train(cache, out=tmp_path / "run", **options)
    left_out = "48 documents of the cache are left out of training: their text is in the dev set"
    assert progress.messages == [left_out]
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


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "stopped"), [(300, None), (1e30, "diverged")])
def test_a_rate_that_ruins_a_run_after_its_first_epoch_keeps_that_epochs_weights(
    factor, stopped, causal_cache, tmp_path
):
    progress, options = Lines(), {**CHOSEN, "overrides": [*STEADY, "training.max_grad_norm=0"]}
    ruined = train(
        causal_cache,
        out=tmp_path / "ruined",
        callbacks=[Rate(factor)],
        progress=progress,
        **options,
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
    assert any(kept in line for line in progress.messages) == (stopped is not None)


def stop():
    raise RuntimeError("stopped")


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


class AtTheEnd(transformers.TrainerCallback):
    """Kills a run that has been trained, before its folder is finished."""

    def on_train_end(self, *args, **kwargs):
        stop()


HIDDEN = ("losses.hidden.layer_map=1:4", "losses.hidden.weight=0.5")
SAVES = ("training.save_strategy=steps", "training.save_steps=4", "training.num_train_epochs=9")


@pytest.fixture(scope="module")
def patience(folder, cache, classifier):
    """A run with projections, ended by its patience, and how it was called."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.from_pretrained(classifier, **sizes)
    config.save_pretrained(folder / "half as wide")
    options = {"recipe": "kd", "config": str(folder / "half as wide"), "patience": 2}
    options["overrides"] = [*STEADY, *HIDDEN, *SAVES]
    options["dev_split"] = 0.2
    return train(cache, out=folder / "patience", **options), options


@pytest.mark.parametrize(
    ("at", "error", "last"),
    [
        pytest.param({EPOCH + 3: interrupt}, KeyboardInterrupt, EPOCH + 3, id="stopped within one"),
        pytest.param("end", RuntimeError, None, id="killed when trained", marks=SLOW),
        pytest.param(
            {2 * EPOCH: interrupt}, KeyboardInterrupt, 12, id="stopped at one", marks=SLOW
        ),
        pytest.param({EPOCH: stop}, RuntimeError, 4, id="killed at one", marks=SLOW),
        pytest.param({EPOCH + 3: stop}, RuntimeError, 8, id="killed within one", marks=SLOW),
    ],
)
def test_a_resumed_run_equals_the_unbroken_one_in_weights_and_scores(
    at, error, last, cache, patience, tmp_path
):
    """From another folder, too: a checkpoint of transformers says where the best one lay."""
    whole, options = patience
    steps = whole.metrics["dev"]["points"][-1]["step"]
    assert whole.metrics["dev"]["stopped"] == "patience"
    assert steps == whole.metrics["dev"]["best"]["step"] + 2 * EPOCH < 9 * EPOCH
    broken = {"callbacks": [AtTheEnd()]} if at == "end" else {"progress": Watcher(at)}
    with pytest.raises(error):
        train(cache, out=tmp_path / "broken", **options, **broken)
    shutil.move(tmp_path / "broken", tmp_path / "moved")
    again = Watcher()
    resumed = train(cache, out=tmp_path / "moved", resume=True, progress=again, **options)
    assert again.messages == [f"resuming from checkpoint {steps if last is None else last}"]
    assert resumed.metrics["steps_run"] == (0 if last is None else steps - last)
    assert_same_weights(whole.folder, resumed.folder)
    assert resumed.metrics["dev"] == whole.metrics["dev"]


def test_a_run_is_not_resumed_with_another_dev_set(cache, held_out, corpus, tmp_path):
    dev = tmp_path / "dev.csv"
    shutil.copy(held_out, dev)
    options = {**FIRST, "out": tmp_path / "run", "overrides": STEADY}
    with pytest.raises(KeyboardInterrupt):
        train(cache, dev=dev, progress=Watcher({2: interrupt}), **options)
    with pytest.raises(MismatchError, match=r"dev\.split = None; now it is 0\.2"):
        train(cache, dev_split=0.2, resume=True, **options)
    with pytest.raises(MismatchError, match=r"dev\.every = 'epoch'; now it is '\(absent\)'"):
        train(cache, resume=True, **options)
    dev.write_text("\n".join(dev.read_text("utf-8").splitlines()[:-1]), "utf-8")
    with pytest.raises(MismatchError, match=r"dev\.documents = 48; now it is 47: its dev set has"):
        train(cache, dev=dev, resume=True, **options)
    shutil.move(shutil.copy(held_out, tmp_path / "other.csv"), tmp_path / "elsewhere.csv")
    train(cache, dev=tmp_path / "elsewhere.csv", resume=True, **options)


def test_a_split_keeps_texts_that_come_twice_on_one_side(classifier, sentences, tmp_path):
    texts = [(s.text, s.package) for s in sentences[:40]] * 2
    twice = build(
        write_csv(tmp_path / "twice.csv", texts),
        teacher=classifier,
        task="text-classification",
        out=tmp_path / "twice.zarr",
        max_length=48,
    )
    progress = Lines()
    options = {**FIRST, "dev_split": "0.25", "progress": progress, "overrides": STEADY[2:]}
    dev = train(twice, out=tmp_path / "run", **options).metrics["dev"]
    ids = twice.plan.per_document["doc_id"][twice.plan.docs]
    assert set(ids % 40) == set(range(40))
    assert dev["documents"] == 20
    assert 20 < dev["left_out"] <= 40
    same = f"{dev['left_out'] - 20} documents of the cache are left out of training"
    assert progress.messages == [f"{same}: their text is in the dev set"]


def test_the_seed_decides_which_documents_are_held_out(cache, chosen):

    config = student_config(StudentSpec(init_from_teacher=(1, 2)), cache)
    drawn = [
        make_dev(
            DevOptions(split=0.2), cache, cache.plan.docs, seed=seed, config=config, progress=quiet
        )
        for seed in (42, 42, 7)
    ]
    recorded = json.loads((chosen[0].folder / "cache.json").read_text("utf-8"))["dev"]
    assert drawn[0].record == drawn[1].record == recorded
    assert drawn[0].record != drawn[2].record


def test_a_dev_file_may_have_more_columns_which_are_named(cache, tmp_path):
    rows = [("once upon a time", "a story of many words", "email")] * 3
    file = write_csv(tmp_path / "more.csv", rows, ("text", "story", "label"))
    config, progress = student_config(StudentSpec(init_from_teacher=(1, 2)), cache), Lines()
    given = {"seed": 0, "config": config, "progress": progress}
    make_dev(DevOptions(file=str(file)), cache, cache.plan.docs, **given)
    assert progress.messages.count("columns not read: story") == 1


@pytest.fixture(scope="module")
def valued(folder, sentences, regressor):
    """A cache of texts with their length as value, and the file it is of."""
    texts = [(s.text, len(s.text) / 100) for s in sentences[:120]]
    file = write_csv(folder / "valued.csv", texts)
    made = build(
        file,
        teacher=regressor,
        task="text-classification",
        label_type="float",
        out=folder / "valued.zarr",
        max_length=48,
    )
    return made, file


@pytest.fixture(scope="module")
def tasks(valued, masked_cache, causal_cache, prose_file, regressor, masked_lm, causal_lm):
    """By metric: a cache, the file it is of, its teacher, and the loss that is turned on."""
    return {
        "pearson": (*valued, regressor),
        "masked": (masked_cache, prose_file, masked_lm),
        "causal": (causal_cache, prose_file, causal_lm),
    }


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("pearson", "pearson"),
        pytest.param("masked", "cross_entropy", marks=SLOW),
        ("causal", "cross_entropy"),
    ],
)
def test_students_of_every_task_are_chosen_by_its_score(task, metric, tasks, tmp_path):
    cache, file, teacher = tasks[task]
    lines = file.read_text("utf-8").splitlines(keepends=True)
    dev, rest = tmp_path / f"dev{file.suffix}", len(lines) * 3 // 4
    dev.write_text("".join([*lines[: file.suffix == ".csv"], *lines[rest:]]), "utf-8")
    # Fewer steps leave predictions so alike that their correlation is the last bits of float32.
    options = {**FIRST, "overrides": [*STEADY, "training.max_steps=36"], "dev_every": 3}
    told = train(cache, out=tmp_path / "run", dev=dev, eval_teacher=teacher, **options)
    found, student = told.metrics["dev"], evaluate(tmp_path / "run", dev)
    best = max if found["higher_is_better"] else min
    assert found["metric"] == metric
    assert found["left_out"] >= found["documents"] * cache.plan.config.views
    assert found["best"]["value"] == best(values(found)) == pytest.approx(student[metric], rel=1e-6)
    scored = evaluate(teacher, dev, max_length=cache.plan.config.max_length)[metric]
    if task == "masked":  # the teacher's folder does not tell how the cache masked
        return
    assert found["teacher"]["value"] == pytest.approx(scored, rel=1e-6)


@pytest.mark.parametrize("task", ["pearson", "causal", pytest.param("masked", marks=SLOW)])
def test_the_cache_tells_what_its_teacher_scores_on_a_split(task, tasks, tmp_path):
    """Exactly where it kept all there is to know; else nearly, and it says so."""
    cache, _, teacher = tasks[task]
    progress, exact = Lines(), task == "pearson"
    options = {**FIRST, "overrides": [*STEADY, "training.max_steps=1"], "dev_split": 0.3}
    told, run = (
        train(cache, out=tmp_path / name, progress=progress, **options, **more).metrics["dev"]
        for name, more in (("told", {}), ("run", {"eval_teacher": teacher}))
    )
    assert any("--eval-teacher runs it" in line for line in progress.messages) is not exact
    assert run["documents"] == told["documents"] > 0
    assert told["teacher"].get("estimate", False) is not exact
    assert told["teacher"]["source"] == "the cache's soft labels"
    assert run["teacher"]["source"] == f"run: {teacher.name}"
    near = pytest.approx(run["teacher"]["value"], rel=1e-5 if exact else 0.1)
    assert told["teacher"]["value"] == near


def test_values_that_are_all_the_same_are_scored_by_their_squared_error(valued, tmp_path):
    dev = write_csv(tmp_path / "dev.csv", [(f"text number {n} of a few", 1.5) for n in range(6)])
    progress, options = Lines(), {**FIRST, "overrides": [*STEADY, "training.max_steps=2"]}
    result = train(valued[0], out=tmp_path / "run", dev=dev, progress=progress, **options)
    found = result.metrics["dev"]
    assert (found["metric"], found["teacher"], found["left_out"]) == ("mse", None, 0)
    assert found["best"]["value"] == pytest.approx(evaluate(result.folder, dev)["mse"], rel=1e-6)
    assert [line for line in progress.messages if "--eval-teacher names a teacher to run" in line]


def test_the_documents_of_a_test_set_choose_nothing(cache, held_out, corpus, tmp_path):
    """Refused where all of it is in the dev set, in whatever order; what it shares is reported."""
    lines = held_out.read_text("utf-8").splitlines()
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join([lines[0], *lines[:20:-1]]), "utf-8")
    options = {**FIRST, "overrides": [*STEADY, "training.max_steps=1"]}
    with pytest.raises(ConfigError, match=r"all documents of .*turned.csv \(--eval\) are in"):
        train(cache, out=tmp_path / "no", dev=held_out, eval_file=turned, **options)
    with pytest.raises(ConfigError, match=r"\(--eval\) are in the dev set \(20% of the cache"):
        train(cache, out=tmp_path / "no", dev_split=0.2, eval_file=turned, **options)
    assert not (tmp_path / "no").exists()
    progress = Lines()
    tested = {"eval_file": corpus, "progress": progress}
    result = train(cache, out=tmp_path / "run", dev=held_out, **tested, **options)
    shared = "48 of the 240 documents of sentences.csv (--eval) have the text of one in the dev set"
    assert f"{shared}: the student is chosen on them" in progress.messages
    assert evaluate(result.folder, held_out)["accuracy"] == result.metrics["dev"]["best"]["value"]
