"""The loss of a step is that of all its documents, however two ranks share them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from kdcache.errors import ConfigError, MismatchError
from kdcache.training.balance import Balance
from kdcache.training.documents import CachedDocuments
from kdcache.training.train import train
from tests import steps
from tests.steps import ALL, TURNS, Student
from tests.test_module_students import HIDDEN, undropped
from tests.test_steps import (  # noqa: F401  # fixtures among them
    CASES,
    TEACHERS,
    compare,
    documents_and_tokens,
    fraction,
    part_labelled,
    values,
)
from tests.test_trainer import Watcher, log_of

pytestmark = pytest.mark.slow  # two processes that import all there is, for a minute

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def still(folder, classifier):
    """A student without dropout, which no two splits of a batch draw alike."""
    config = transformers.AutoConfig.from_pretrained(classifier, **steps.SMALL["bert"])
    config.save_pretrained(folder / "still")
    return str(folder / "still")


WHOLE = ["training.num_train_epochs=1", "training.logging_steps=1", "training.learning_rate=1e-3"]


TOLD = CASES.index(("cache", "three", torch.float64))
CHOOSING = ["--dev-split", "25%", "--dev-every", "1"]


HEADS: dict[str, Any] = {
    "recipe": "kd",
    "mix": "even",
    "dev_split": 0.25,
    "dev_every": 2,
    # Not Adam, which makes steps of the rounding where a gradient is none, as that of a key's bias.
    "overrides": ["training.max_steps=4", "training.learning_rate=0.1", "training.optim=sgd"],
}


def of_module(batch):
    """Options of a run on soft labels and hidden states, which a map is learnt for."""
    return {
        "recipe": "kd",
        "batch_size": batch,
        "overrides": [*WHOLE, "training.max_steps=3", *HIDDEN],
    }


@pytest.fixture(scope="module")
def two_ranks(request, tmp_path_factory, cache, masked_cache, still):
    """All that two ranks do, by one launch of torchrun: its folder and what it printed."""
    out = tmp_path_factory.mktemp("ranks")
    jobs = [
        {
            "cache": str(request.getfixturevalue(place).path),
            "config": str(request.getfixturevalue(TEACHERS[place])),
            "name": name,
            "dtype": str(dtype).removeprefix("torch."),
        }
        for place, name, dtype in CASES
    ]
    jobs.append({**jobs[TOLD], "weights": "teacher-probability"})
    jobs.append({**jobs[TOLD], "balance": "gradient"})
    stopped = {"cache": str(cache.path), "recipe": "kd", "out": str(out / "run"), "config": still}
    stopped["overrides"] = [*WHOLE, "training.per_device_train_batch_size=8"]
    command = ["train", str(cache.path), "--recipe", "kd", "--out", str(out / "by command")]
    command += ["--config", still, "--set", "training.max_steps=2", *CHOOSING]
    heads = {"caches": {"packages": str(cache.path), "words": str(masked_cache.path)}}
    heads |= {"out": str(out / "heads"), "config": still, "batch_size": 8, **HEADS}
    module = {"cache": str(cache.path), "out": str(out / "module"), **of_module(8)}
    told = {"steps": jobs, "stopped": stopped, "command": command, "heads": heads, "module": module}
    (out / "jobs.json").write_text(json.dumps(told), "utf-8")
    paths = os.pathsep.join(str(ROOT / where) for where in (".", "kernels", "cli"))
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = [str(ROOT / "tests" / "two_ranks.py"), str(out / "jobs.json"), str(out)]
    ended = subprocess.run(
        [sys.executable, "-m", *launcher, *script],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return out, ended.stdout


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_two_ranks_are_the_whole_batch(case, two_ranks, request):
    """In the second step one of them has a batch less, or none, and still takes its turn."""
    place, name, dtype = case
    cache, config = (request.getfixturevalue(n) for n in (place, TEACHERS[place]))
    entries, taken, seen = torch.load(two_ranks[0] / f"{CASES.index(case)}.pt")
    whole = Student(cache, config, ALL[name], dtype)
    compare(whole, dtype, whole.arguments(two_ranks[0]), list(zip(entries, taken, strict=True)))
    assert seen == documents_and_tokens(whole)


def test_two_ranks_of_weighed_documents_are_the_whole_batch(two_ranks, cache, classifier):
    entries, taken, _ = torch.load(two_ranks[0] / f"{len(CASES)}.pt")
    whole = Student(cache, classifier, ALL["three"], torch.float64)
    trainer, _ = whole.trainer(two_ranks[0] / "weighed", turns=1)
    weigher = steps.weigh(whole, trainer, "teacher-probability")
    read = CachedDocuments.read
    plain = whole.data

    def data():
        found = plain()
        found.arrays = trainer.dataset.arrays
        found.read = lambda docs: weigh(read(found, docs))
        return found

    def weigh(batch):
        weigher.weigh(batch, 0)
        return batch

    whole.data = data
    compare(whole, torch.float64, trainer.args, list(zip(entries, taken, strict=True)))


def test_two_ranks_come_to_the_same_weights_of_losses(two_ranks, cache, classifier, tmp_path):
    """Of documents that are not those of one process's first batches, so to about the same."""
    first, second = (
        json.loads((two_ranks[0] / f"weights {rank}.json").read_text("utf-8")) for rank in (0, 1)
    )
    assert first == second
    student = Student(cache, classifier, ALL["three"], torch.float64)
    trainer, taken = student.trainer(tmp_path, turns=TURNS, balance=Balance())
    steps.run(trainer, taken)
    assert first == pytest.approx(trainer.balancers[0].weights(), rel=0.5)
    assert first != pytest.approx({n: loss.weight for n, loss in ALL["three"].items()}, rel=0.5)


def test_torchrun_trains_one_student_and_one_rank_tells(two_ranks):
    out, printed = two_ranks
    metrics = json.loads((out / "by command" / "metrics.json").read_text("utf-8"))
    assert metrics["documents"] == 2 * 2 * 32
    assert printed.count("by command") == 1


def test_two_ranks_choose_as_one_does(two_ranks, cache, still, tmp_path):
    """Their share of the dev set each, and the first of them writes."""
    dev = json.loads((two_ranks[0] / "by command" / "metrics.json").read_text("utf-8"))["dev"]
    batch = ["training.max_steps=2", "training.per_device_train_batch_size=64"]
    options = {"recipe": "kd", "config": still, "overrides": batch, "dev_split": 0.25}
    alone = train(cache, out=tmp_path / "alone", dev_every=1, **options).metrics["dev"]
    assert dev == alone
    assert [point["step"] for point in dev["points"]] == [1, 2]
    chosen = load_file(two_ranks[0] / "by command" / "model.safetensors")
    for name, weight in load_file(tmp_path / "alone" / "model.safetensors").items():
        assert torch.allclose(chosen[name], weight, atol=1e-5), name


def test_two_ranks_train_and_choose_heads_as_one_does(
    two_ranks, cache, masked_cache, still, tmp_path
):
    caches = {"packages": cache, "words": masked_cache}
    alone = train(caches, out=tmp_path / "alone", config=still, batch_size=16, **HEADS)
    there = json.loads((two_ranks[0] / "heads" / "metrics.json").read_text("utf-8"))
    for name in ("documents", "caches", "heads"):
        assert there[name] == alone.metrics[name]
    scores = [
        [point["value"] for point in found["dev"]["points"]] for found in (there, alone.metrics)
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    for head in caches:
        found = load_file(two_ranks[0] / "heads" / head / "model.safetensors")
        for name, weight in load_file(alone.folder / head / "model.safetensors").items():
            assert torch.allclose(found[name], weight, atol=1e-6), name


def test_two_ranks_train_a_module_as_one_does(two_ranks, cache, tmp_path):
    train(cache, student=undropped(), out=tmp_path / "alone", **of_module(16))
    found = load_file(two_ranks[0] / "module" / "model.safetensors")
    for name, weight in load_file(tmp_path / "alone" / "model.safetensors").items():
        assert torch.allclose(found[name], weight, atol=1e-5), name
    moved = undropped().state_dict()
    assert not any(torch.equal(found[name], weight) for name, weight in moved.items())


def test_all_ranks_stop_together_when_one_is_told_to(two_ranks):
    out, _ = two_ranks
    assert (out / "stopped 0").exists()
    assert (out / "stopped 1").exists()
    (checkpoint,) = (out / "run" / "checkpoints").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-5"  # told in the fourth, agreed on in the fifth
    assert {path.name for path in checkpoint.glob("rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


def test_a_run_resumed_on_fewer_ranks_keeps_its_steps(two_ranks, cache, still, tmp_path):
    """Two ranks of 8 are one of 8, accumulated twice, or one of 16: the same 15 steps."""
    for size in (8, 16):
        overrides = [*WHOLE, f"training.per_device_train_batch_size={size}"]
        options = {"recipe": "kd", "config": still, "overrides": overrides}
        shutil.copytree(two_ranks[0] / "run", tmp_path / str(size))
        progress = Watcher()
        train(cache, out=tmp_path / str(size), resume=True, progress=progress, **options)
        note = "a step keeps its 16 documents: 1 rank x 8 x accumulation 2"
        assert (note in progress.messages) == (size == 8)
        assert [bar[1:] for bar in progress.bars] == [["steps", 10, 10]]
    unbroken = train(cache, out=tmp_path / "unbroken", **options)
    for other in ("8", "16"):
        found = log_of(tmp_path / other)
        assert [entry["step"] for entry in found] == list(range(1, 16))
        for entry, wanted in zip(found, log_of(unbroken.folder), strict=True):
            for key in ("learning_rate", "loss", "loss_kl"):
                assert entry[key] == pytest.approx(wanted[key], rel=1e-4), (other, key)


def test_a_step_that_other_ranks_cannot_make_is_refused(two_ranks, cache, still, tmp_path):
    shutil.copytree(two_ranks[0] / "run", tmp_path / "run")
    overrides = [*WHOLE, "training.per_device_train_batch_size=6"]
    message = "16 documents a step, on 2 ranks; 1 rank of 6 cannot: resume on 2 ranks, or set"
    options = {"recipe": "kd", "out": tmp_path / "run", "config": still, "overrides": overrides}
    for _ in range(2):
        with pytest.raises(MismatchError, match=message):
            train(cache, resume=True, **options)
        record = tmp_path / "run" / "checkpoints" / "run.json"
        record.unlink(missing_ok=True)  # as in runs of earlier versions: the checkpoint tells
    record.write_text('{"documents_per_step": null}', "utf-8")
    with pytest.raises(ConfigError, match=r"run\.json is damaged"):
        train(cache, resume=True, **options)
