"""Training from caches: it learns, resumes exactly, refuses early and leaves a usable folder."""

import json
import os
import platform
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from kdcache.errors import ConfigError, CorpusError, IncompleteError, MismatchError, ModelError
from kdcache.store import open_cache
from kdcache.training.recipe import load_recipe
from kdcache.training.train import train

QUICK = ("training.max_steps=6", "training.logging_steps=2", "training.learning_rate=1e-3")


@pytest.fixture(scope="module")
def narrow(folder, classifier):
    """A configuration half as wide and half as deep as the teachers, with dropout."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.AutoConfig.from_pretrained(classifier, **sizes)
    config.save_pretrained(folder / "narrow")
    return str(folder / "narrow")


class Watcher:
    """A Progress that remembers, and calls `at[step]` when that step is done."""

    def __init__(self, at=None):
        self.at = at or {}
        self.messages, self.bars = [], []

    @contextmanager
    def bar(self, label, *, unit, total):
        done = [label, unit, total, 0]
        self.bars.append(done)

        def advance(count):
            done[3] += count
            if label.startswith("training"):
                self.at.get(done[3], lambda: None)()

        yield advance

    def say(self, message):
        self.messages.append(message)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def log_of(folder):
    entries = json.loads((Path(folder) / "training_log.json").read_text("utf-8"))
    return [entry for entry in entries if "loss" in entry]


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def stopped_and_resumed(cache, folder, stop=None, **options):
    """The unbroken run, the same one stopped in step 3 and gone on with, and what that one said."""
    whole = train(cache, out=folder / "whole", **options)
    told = Watcher({3: stop or (lambda: signal.raise_signal(signal.SIGINT))})
    with pytest.raises(KeyboardInterrupt):
        train(cache, out=folder / "run", progress=told, **options)
    resumed = train(cache, out=folder / "run", resume=True, **options)
    assert_same_weights(whole.folder, resumed.folder)
    return whole, resumed, told.messages


HIDDEN = ("losses.hidden.layer_map=uniform", "losses.hidden.weight=1.0")


@pytest.fixture(scope="module")
def trained(folder, cache, narrow):
    """A student of half the width, trained on soft labels and hidden states."""
    out = folder / "trained"
    progress = Watcher()
    result = train(
        cache, recipe="kd", out=out, config=narrow, overrides=[*QUICK, *HIDDEN], progress=progress
    )
    return result, progress


def test_the_folder_holds_a_model_that_auto_classes_load(trained, cache):
    result, _ = trained
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.folder)
    assert model.config.id2label == {0: "asyncio", 1: "email", 2: "tkinter"}
    assert model.config.label2id == {"asyncio": 0, "email": 1, "tkinter": 2}
    assert model.config.problem_type == "single_label_classification"
    assert result.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.folder)
    out = model(**tokenizer("a line of text", return_tensors="pt"))
    assert out.logits.shape == (1, 3)


def test_the_folder_tells_what_the_student_was_made_of(trained, cache, narrow):
    folder = trained[0].folder
    recipe = load_recipe(folder / "recipe.toml")
    assert recipe.student == {"config": narrow}
    assert recipe.training["max_steps"] == 6
    identity = json.loads((folder / "cache.json").read_text("utf-8"))
    assert identity["plan"] == cache.plan.sha256
    assert identity["signals"] == cache.manifest["signals"]
    assert (folder / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_metrics_and_log_tell_every_loss_term(trained):
    result, _ = trained
    metrics = json.loads((result.folder / "metrics.json").read_text("utf-8"))
    assert metrics == result.metrics
    assert set(metrics["losses"]) == {"loss", "loss_kl", "loss_hidden"}
    assert metrics["steps"] == metrics["steps_run"] == 6
    assert metrics["documents"] == 6 * 32
    assert metrics["tokens"] > metrics["documents"]
    assert metrics["peak_rss_bytes"] > 1e8
    assert 0 < metrics["data_wait_seconds"] < metrics["seconds"]
    assert 0 < metrics["data_wait_share"] < 1
    assert 0 < metrics["step_seconds_median"] < metrics["seconds"]
    log = log_of(result.folder)
    assert [entry["step"] for entry in log] == [2, 4, 6]
    for entry in log:
        assert entry["loss"] == pytest.approx(entry["loss_kl"] + entry["loss_hidden"], rel=1e-5)
    assert "6 steps" in repr(result)


def test_a_finished_run_keeps_neither_checkpoints_nor_projections(trained):
    result, _ = trained
    assert not (result.folder / "checkpoints").exists()
    assert not [name for name in weights(result.folder) if "projection" in name]


def test_projections_are_learned_and_kept_in_checkpoints(cache, narrow, tmp_path):
    def stop():
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(
            cache,
            recipe="kd",
            out=tmp_path / "run",
            config=narrow,
            overrides=[*QUICK, *HIDDEN],
            progress=Watcher(at={3: stop}),
        )
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    learned = weights(checkpoint)
    names = [name for name in learned if name.startswith("kdcache_projections")]
    assert len(names) == 2 * 3  # weight and bias of layers 0, 1 and 2
    optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert len(optimizer["state"]) == len(learned)


def test_progress_counts_steps_and_nothing_is_printed(cache, narrow, tmp_path, capfd):
    progress = Watcher()
    train(
        cache, recipe="kd", out=tmp_path / "run", config=narrow, overrides=QUICK, progress=progress
    )
    assert progress.bars == [["training run by kd from cache.zarr", "steps", 6, 6]]
    assert progress.messages == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "recipe",
    ["kd", "kd-mse", "finetune", "pkd-last", pytest.param("pkd-skip", marks=pytest.mark.slow)],
)
def test_training_lowers_the_loss(recipe, cache, tmp_path):
    overrides = [
        "training.num_train_epochs=4",
        "training.logging_steps=8",
        "training.learning_rate=2e-3",
        "training.warmup_steps=0",
    ]
    train(cache, recipe=recipe, out=tmp_path / "run", init_from_teacher=[1, 2], overrides=overrides)
    log = log_of(tmp_path / "run")
    assert log[-1]["loss"] < 0.95 * log[0]["loss"]


def test_masked_language_modelling_learns_from_top_k(masked_cache, tmp_path):
    overrides = [*QUICK, "training.max_steps=80", "losses.hidden.layer_map=1:2,2:4"]
    result = train(
        masked_cache,
        recipe="mlm-kd",
        out=tmp_path / "run",
        init_from_teacher=[2, 4],
        overrides=overrides,
    )
    log = log_of(result.folder)
    assert set(result.metrics["losses"]) == {"loss", "loss_kl", "loss_hard", "loss_hidden"}
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    transformers.AutoModelForMaskedLM.from_pretrained(result.folder)


def test_causal_language_modelling_learns_from_top_k(causal_cache, tmp_path):
    overrides = [*QUICK, "training.max_steps=40", "losses.hidden.layer_map=0:0,2:4"]
    result = train(
        causal_cache,
        recipe="causal-kd",
        out=tmp_path / "run",
        init_from_teacher=[2, 4],
        overrides=overrides,
    )
    log = log_of(result.folder)
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    model = transformers.AutoModelForCausalLM.from_pretrained(result.folder)
    assert model.config.use_cache


def stop():
    raise RuntimeError("stopped")


@pytest.mark.parametrize(
    ("stop_after", "every", "accumulate"),
    [
        pytest.param(6, 5, 2, id="within an epoch-2"),
        pytest.param(9, 8, 1, id="between epochs-1", marks=pytest.mark.slow),
        pytest.param(6, 5, 1, id="within an epoch-1", marks=pytest.mark.slow),
        pytest.param(9, 8, 2, id="between epochs-2", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_equals_the_unbroken_one_bit_for_bit(
    cache, narrow, tmp_path, stop_after, every, accumulate
):
    overrides = [
        *HIDDEN,
        "training.num_train_epochs=2",
        f"training.per_device_train_batch_size={32 // accumulate}",
        f"training.gradient_accumulation_steps={accumulate}",
        "training.learning_rate=1e-3",
        "training.save_strategy=steps",
        f"training.save_steps={every}",
    ]

    def run(name, **options):
        return train(
            cache, recipe="kd", out=tmp_path / name, config=narrow, overrides=overrides, **options
        )

    whole = run("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", progress=Watcher({stop_after: stop}))
    again = Watcher()
    resumed = run("broken", resume=True, progress=again)
    assert again.messages == [f"resuming from checkpoint {every}"]
    assert [bar[1:] for bar in again.bars] == [["steps", 16 - every, 16 - every]]
    assert resumed.metrics["steps"] == whole.metrics["steps"] == 16
    assert_same_weights(whole.folder, resumed.folder)
    assert log_of(whole.folder)[-1]["grad_norm"] == log_of(resumed.folder)[-1]["grad_norm"]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_stopped_run_leaves_a_checkpoint_to_go_on_from_exactly(number, cache, narrow, tmp_path):
    def run(name, **options):
        return train(
            cache, recipe="kd", out=tmp_path / name, config=narrow, overrides=QUICK, **options
        )

    interrupted = Watcher({2: lambda: os.kill(os.getpid(), number)})
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        run("broken", progress=interrupted)
    assert signal.getsignal(number) is before
    assert interrupted.messages == ["stopping after this step; the run can be resumed"]
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    assert_same_weights(run("whole").folder, run("broken", resume=True).folder)


def test_a_half_written_checkpoint_is_passed_over(cache, narrow, tmp_path):
    overrides = [*QUICK, "training.save_strategy=steps", "training.save_steps=2"]
    options = {"recipe": "kd", "out": tmp_path / "run", "config": narrow, "overrides": overrides}
    with pytest.raises(RuntimeError, match="stopped"):
        train(cache, progress=Watcher({3: stop}), **options)
    (tmp_path / "run" / "checkpoints" / "checkpoint-4").mkdir()
    progress = Watcher()
    train(cache, resume=True, progress=progress, **options)
    assert progress.messages == ["resuming from checkpoint 2"]


def test_equal_runs_give_equal_students_and_other_seeds_others(cache, narrow, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        train(
            cache,
            recipe="kd",
            out=tmp_path / name,
            config=narrow,
            overrides=[*QUICK, f"training.seed={seed}"],
        )
        torch.rand(7)
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    assert log_of(tmp_path / "one")[0]["loss"] != log_of(tmp_path / "other")[0]["loss"]


def test_accumulated_micro_batches_give_the_loss_of_the_whole_batch(cache, narrow, tmp_path):
    """Without dropout, two batches of 16 are one of 32."""
    losses = []
    for size, steps in ((32, 1), (16, 2)):
        overrides = [
            *QUICK,
            "training.max_steps=4",
            f"training.per_device_train_batch_size={size}",
            f"training.gradient_accumulation_steps={steps}",
        ]
        still = transformers.BertConfig.from_pretrained(
            narrow, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        still.save_pretrained(tmp_path / "still")
        out = tmp_path / str(size)
        train(cache, recipe="kd", out=out, config=str(tmp_path / "still"), overrides=overrides)
        losses.append([(entry["loss"], entry["grad_norm"]) for entry in log_of(out)])
    for one, two in zip(*losses, strict=True):
        assert one == pytest.approx(two, rel=1e-3)


def test_eval_file_scores_the_student(cache, corpus, narrow, tmp_path):
    result = train(
        cache,
        recipe="finetune",
        out=tmp_path / "run",
        config=narrow,
        overrides=QUICK,
        eval_file=corpus,
    )
    assert 0 <= result.metrics["evaluation"]["accuracy"] <= 1
    written = json.loads((tmp_path / "run" / "metrics.json").read_text("utf-8"))
    assert written["evaluation"] == result.metrics["evaluation"]


def test_an_eval_file_is_read_by_the_columns_of_the_corpus(classifier, narrow, tmp_path):
    from kdcache.building.builder import build

    lines = ["said,seen,verdict", "a text,one more text here,email", "another,and one more,tkinter"]
    path = tmp_path / "c.csv"
    path.write_text("\n".join(lines + lines[1:] * 9))
    made = build(
        path,
        teacher=classifier,
        task="text-classification",
        out=tmp_path / "c.zarr",
        text_columns=["said"],
        label_column="verdict",
    )
    result = train(
        made,
        recipe="kd",
        out=tmp_path / "run",
        config=narrow,
        eval_file=path,
        overrides=QUICK,
    )
    assert result.metrics["evaluation"]["documents"] == 20


def test_an_unlabelled_corpus_turns_hard_labels_off_with_a_message(
    tmp_path, sentences, classifier, narrow
):
    from kdcache.building.builder import build

    path = tmp_path / "bare.jsonl"
    path.write_text("\n".join(json.dumps({"text": s.text}) for s in sentences[:40]), "utf-8")
    bare = build(
        path,
        teacher=classifier,
        task="text-classification",
        out=tmp_path / "bare.zarr",
        max_length=48,
        part_tokens=2048,
        label_column="",
    )
    progress = Watcher()
    result = train(
        bare,
        recipe="kd",
        out=tmp_path / "run",
        config=narrow,
        progress=progress,
        overrides=[*QUICK, "losses.hard.weight=0.5"],
    )
    assert progress.messages == ["hard-label loss is off: the corpus has no labels"]
    assert set(result.metrics["losses"]) == {"loss", "loss_kl"}
    with pytest.raises(ConfigError, match="hard labels alone"):
        train(bare, recipe="finetune", out=tmp_path / "no", config=narrow)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"recipe": "kdd"}, ConfigError, "did you mean 'kd'"),
        ({"config": None}, ConfigError, "exactly one of a checkpoint"),
        ({"student": "somewhere"}, ConfigError, "exactly one of a checkpoint .* got 2"),
        ({"recipe": "hidden"}, ConfigError, "positions=all; the cache holds positions=cls"),
        (
            {"overrides": ["losses.hidden.layer_map=1:9"]},
            ConfigError,
            "needs teacher layer 9; the teacher has layers 0 .* to 4",
        ),
        (
            {"overrides": [*HIDDEN, "losses.hidden.projection=none"]},
            ConfigError,
            "width is 16, the cached teacher's 32",
        ),
        ({"overrides": ["training.learning_rat=1"]}, ConfigError, "mean 'training.learning_rate'"),
        ({"overrides": ["training.batch_size=1"]}, ConfigError, "per_device_train_batch_size"),
        ({"overrides": ["training.learning_rate=fast"]}, ConfigError, "of type float; got 'fast'"),
        ({"overrides": ["training.lr_scheduler_type=lin"]}, ConfigError, "lin"),
        ({"overrides": ["training.max_steps=1.5"]}, ConfigError, "of type int; got 1.5"),
        ({"overrides": ["training.output_dir=x"]}, ConfigError, "the folder is `out`"),
        (
            {"overrides": ["training.label_smoothing_factor=0.1"]},
            ConfigError,
            "cannot be set: the objective is made of the losses",
        ),
        *[
            ({"overrides": [f"training.{field}={value}"]}, ConfigError, f"training.{field} must be")
            for field, *values in (
                ("per_device_train_batch_size", 0, -3),
                ("gradient_accumulation_steps", 0),
                ("num_train_epochs", 0, -1, "nan", "inf"),
                ("max_steps", 0, -2, "nan", "inf"),
                ("learning_rate", -1e-4, "nan", "inf"),
                ("weight_decay", "nan"),
                ("warmup_steps", -1),
                ("max_grad_norm", -1.0),
                ("logging_steps", 0),
                ("save_steps", -1),
                ("adam_beta1", 1.0),
                ("save_total_limit", 0, "many"),
                ("seed", -1, 2**32),
            )
            for value in values
        ],
        (
            {
                "overrides": [
                    "training.dataloader_drop_last=true",
                    "training.per_device_train_batch_size=121",
                    "training.gradient_accumulation_steps=2",
                    "training.max_steps=3",
                ]
            },
            ConfigError,
            r"are 240 documents and a step takes 242 \(1 rank x 121 x accumulation 2\); lower",
        ),
        (
            {"overrides": ["training.accelerator_config={split_batches=true}"]},
            ConfigError,
            "batches are dealt out to ranks by kdcache",
        ),
        ({"resume": True}, ConfigError, "no checkpoint to resume from"),
        ({"eval_file": "nowhere.csv"}, CorpusError, "no evaluation file nowhere.csv"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    options, error, message, cache, narrow, tmp_path, monkeypatch
):
    def loaded(*args, **kwargs):
        raise AssertionError("a student was loaded")

    monkeypatch.setattr(transformers.PreTrainedModel, "__init__", loaded)
    with pytest.raises(error, match=message):
        train(cache, **{"recipe": "kd", "out": tmp_path / "run", "config": narrow, **options})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE=4 .* RANK, .* torchrun --nproc-per-node N, or unset W"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 says that 2 processes train toge"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "or unset OMPI_COMM_WORLD_SIZE"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is a number of processes; got 'many'"),
        (
            {"WORLD_SIZE": "2", "RANK": "0"},
            "WORLD_SIZE says that 2 processes train together, and transformers finds 1: start them",
        ),
    ],
)
def test_processes_that_would_each_train_a_student_are_refused(
    variables, message, cache, narrow, tmp_path, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        train(cache, out=tmp_path / "run", config=narrow, overrides=["training.use_cpu=false"])
    assert not (tmp_path / "run").exists()


def test_one_of_one_process_trains_whatever_its_launcher(cache, narrow, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")  # of torchruns, say
    overrides = [*QUICK, "training.max_steps=1"]
    result = train(cache, out=tmp_path / "run", config=narrow, overrides=overrides)
    assert result.metrics["steps"] == 1


def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(cache, narrow, tmp_path):
    overrides = [*QUICK, "training.save_strategy=steps", "training.save_steps=1"]
    options = {"out": tmp_path / "run", "config": narrow, "overrides": overrides}
    refused = []

    def second():
        with pytest.raises(ConfigError) as caught:
            train(cache, resume=True, **options)
        refused.append(str(caught.value))
        stop()

    with pytest.raises(RuntimeError, match="stopped"):
        train(cache, progress=Watcher({2: second}), **options)
    holder = f"process {os.getpid()} on {platform.node()}"
    way_out = "wait for it, or choose another folder (--out)"
    assert refused == [f"{holder} is training into {tmp_path / 'run'}; {way_out}"]
    lock = tmp_path / "run" / "checkpoints" / "lock"
    assert not lock.exists()
    lock.write_text("77 on a machine that was switched off", encoding="utf-8")
    assert train(cache, resume=True, **options).metrics["steps"] == 6
    assert not lock.parent.exists()


def test_dropping_the_last_step_leaves_whole_steps(cache, narrow, tmp_path):
    overrides = [
        *QUICK[1:],
        "training.num_train_epochs=1",
        "training.dataloader_drop_last=true",
        "training.per_device_train_batch_size=32",
        "training.gradient_accumulation_steps=2",
    ]
    result = train(cache, out=tmp_path / "run", config=narrow, overrides=overrides)
    assert (result.metrics["steps"], result.metrics["documents"]) == (3, 3 * 64)


def test_a_student_without_all_tokens_of_the_plan_is_refused(cache, narrow, tmp_path):
    other = transformers.AutoConfig.from_pretrained(narrow, vocab_size=77)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"holds token \d+, and the student has 77 tokens"):
        train(cache, out=tmp_path / "run", config=str(tmp_path / "other"))


def test_an_incomplete_cache_is_refused(cache, narrow, tmp_path):
    shutil.copytree(cache.path, tmp_path / "half.zarr")
    shutil.rmtree(tmp_path / "half.zarr" / "complete")
    with pytest.raises(IncompleteError, match="is incomplete"):
        train(tmp_path / "half.zarr", out=tmp_path / "run", config=narrow)


def test_a_diverged_run_stops_with_the_way_out(cache, narrow, tmp_path):
    overrides = [*QUICK, "training.learning_rate=1e30", "training.max_grad_norm=0"]
    with pytest.raises(ModelError, match=r"training has diverged; lower training\.learning_rate"):
        train(cache, recipe="kd-mse", out=tmp_path / "run", config=narrow, overrides=overrides)


def test_a_folder_in_use_is_not_overwritten(trained, cache, narrow, tmp_path):
    done = trained[0].folder
    for resume in (False, True):
        with pytest.raises(ConfigError, match="already holds a trained model"):
            train(cache, out=done, config=narrow, resume=resume)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        train(cache, out=tmp_path / "mine", config=narrow)


def test_a_stopped_run_is_not_overwritten_nor_resumed_as_another(cache, narrow, tmp_path):
    overrides = [*QUICK, "training.save_strategy=steps", "training.save_steps=2"]
    options = {"recipe": "kd", "out": tmp_path / "run", "config": narrow}
    with pytest.raises(RuntimeError, match="stopped"):
        train(cache, overrides=overrides, progress=Watcher({3: stop}), **options)
    with pytest.raises(ConfigError, match="stopped after checkpoint 2; continue it with resume"):
        train(cache, overrides=overrides, **options)
    with pytest.raises(MismatchError, match=r"training\.learning_rate = 0\.001; now it is 0\.5"):
        train(cache, overrides=[*overrides, "training.learning_rate=0.5"], resume=True, **options)


def test_a_cache_is_given_by_path_or_object(cache, narrow, tmp_path):
    for name, source in (("path", str(cache.path)), ("object", open_cache(cache.path))):
        train(source, out=tmp_path / name, config=narrow, overrides=QUICK)
    assert_same_weights(tmp_path / "path", tmp_path / "object")
