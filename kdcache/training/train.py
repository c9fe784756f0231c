"""Train a student from a cache; the teacher is neither in memory nor on the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from kdcache.errors import ConfigError, require_path
from kdcache.maintenance.outdated import outdated
from kdcache.manifest import Json
from kdcache.models.student_config import unloadable
from kdcache.models.together import require_one
from kdcache.plans.identity import say_unvouched
from kdcache.progress import Progress, Shown, short, shown
from kdcache.store import Cache, Place
from kdcache.training.arguments import meant_fields
from kdcache.training.dev import file_plan, require_untested
from kdcache.training.dev_heads import of_heads, options_of, require_dev_files, require_scored
from kdcache.training.evaluation import check_evaluation, check_labels, same_columns
from kdcache.training.mixture import Mixture, open_mixture
from kdcache.training.options import asked, check_callbacks, dev_fields, student_spec
from kdcache.training.parts import choose_parts
from kdcache.training.recipe import Recipe, load_recipe
from kdcache.training.requirements import require_points
from kdcache.training.result import TrainResult
from kdcache.training.reworded import in_other_words
from kdcache.training.run_folder import CACHE
from kdcache.training.stages import Stages
from kdcache.training.vocabulary import with_fewer_tokens


def train(
    cache: Place | Cache | Sequence[Place | Cache] | Mapping[str, Place | Cache],
    *,
    recipe: str | Path | Recipe = "kd",
    out: str | Path,
    student: str | Path | nn.Module | None = None,
    init_from_teacher: Sequence[int] | str | None = None,
    config: str | Path | None = None,
    same_tokenizer: bool = False,
    trust_remote_code: bool = False,
    eval_file: Any = None,
    eval_teacher: str | Path | Mapping[str, str | Path] | None = None,
    dev: str | Path | Mapping[str, str | Path] | None = None,
    dev_split: float | str | None = None,
    dev_every: int | str | None = None,
    patience: int | None = None,
    vocabulary: int | str | Path | None = None,
    seed: int | None = None,
    epochs: float | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    overrides: Sequence[str] = (),
    callbacks: Sequence[Any] = (),
    mix: Sequence[float] | str | None = None,
    resume: bool = False,
    allow_partial: bool = False,
    progress: Shown = None,
) -> TrainResult:
    """Train a student from `cache` by `recipe` into the folder `out`.

    Args:
        cache: a cache, or several in a list. Each step is of one of them; without `mix` an epoch is
            one pass over the documents of all. The student is made for the first: from its teacher
            come layers, tokenizer and classes, and a `dev_split` is a share of it. Caches of other
            tasks, kinds of labels, classes or outputs give the student a head each on one encoder,
            which is the first's; so do those of a mapping, which names the heads. Each head is then
            saved as a model in a folder of its name in `out`, and a `dev_split` is a share of each.
        recipe: name of a shipped recipe, a file, or a Recipe.
        student: folder or hub name of the checkpoint to start from; a student of
            `kdcache.students` with new weights, "bilstm" or "static:embedding=64"; or the student
            itself, any module that maps `input_ids` and `attention_mask` to logits, which is
            trained in place (docs/python.md says what it may declare besides); or
        init_from_teacher: teacher layers (1 is the first block) whose blocks the student copies; or
        config: folder or file of a configuration whose weights are drawn anew. None of the three
            leaves the choice to the recipe.
        same_tokenizer: your word that a checkpoint without a tokenizer has the cache's vocabulary.
        trust_remote_code: import the class of a checkpoint, or of a teacher, that is a module of
            somebody's own.
        eval_file: labelled documents to evaluate the student on when it is done, a corpus as in
            `plan`. It is never chosen on them. For heads a mapping by their names, and so are the
            next two.
        eval_teacher: folder or hub name of the teacher, to be scored on them and on `dev` too.
        dev: labelled documents that the student is scored on while it trains: the weights that
            score best are kept. Documents of the cache with the same text are not trained on.
        dev_split: in its place a share of the cache's labelled documents, 0.1 or "10%", held out
            from training; the seed decides which. This and the next two, and `dev`, set fields of
            the recipe's [dev] table.
        dev_every: steps between two scores, or "epoch", the default.
        patience: scores in a row without a better one after which training stops.
        vocabulary: the tokens whose embeddings the student keeps: "corpus", those that the cache's
            documents use; a text file, those of its lines too; or how many rows at most, the most
            used. Ids are renumbered where they are read, and the student's tokenizer has these.
            Sets a field of the recipe's [student] table.
        seed: of new weights, dropout and the order of documents. This and the next four set fields
            of the recipe's [training] table.
        epochs: passes over the documents.
        lr: the highest learning rate.
        batch_size: documents a device takes in a forward.
        device: "auto", "cpu" or "cuda", the first GPU this process sees.
        overrides: fields of the recipe, such as "training.learning_rate=1e-4".
        callbacks: `transformers.TrainerCallback` objects, called at every step, log and checkpoint.
        mix: shares of the steps that several caches get, (0.7, 0.3) or "0.7,0.3"; or how they go by
            the number of documents: "proportional", "sqrt" (by its root), "even", or "annealed",
            from proportional to nearly even over the epochs. An epoch then has as many steps as all
            their documents fill; a cache goes on in the next epoch where it
            stopped, and starts over when it has been gone through.
        resume: continue from the last checkpoint in `out`. On a CPU the result equals that of the
            unbroken run bit for bit.
        allow_partial: train on the parts that are committed where the cache lacks some, as while
            it is being built; a run that is resumed keeps to the parts it was started on.

    Under torchrun its processes train one student: the loss of a step is that of all its documents,
    and the first writes. A run that is resumed keeps the documents of a step, whatever the ranks.

    Seeds torch's, numpy's and Python's global generators. Stopped by Ctrl-C or SIGTERM, all ranks
    finish the same step, write a checkpoint and raise KeyboardInterrupt.

    Raises:
        ConfigError: cache and student cannot serve the recipe, or a folder cannot be used: before
            anything is loaded.
        MismatchError: caches do not go together, or a run that is resumed had other settings.
        IncompleteError: a cache lacks parts.
        CorpusError: files to choose or evaluate on cannot be read, or are what is trained on.
        ModelError: a student does not fit, or a loss is no longer finite.
    """
    progress = shown(progress)
    require_path("the student's folder", out, "path")
    mixture = open_mixture(cache, mix)
    source = mixture.first
    for note in mixture.notes:
        progress.say(note)
    say_unvouched(progress, [(one.path, one.manifest["teacher"]) for one in mixture.caches])
    for fault in (fault for one in mixture.caches for fault in outdated(one.path)):
        progress.say(fault)
    mixture.require_whole(allow_partial=allow_partial)
    parts = choose_parts(source, Path(out) / CACHE, allow_partial=allow_partial, resume=resume)
    wanted = {"dev": dev, "dev_split": dev_split, "dev_every": dev_every, "patience": patience}
    chosen = load_recipe(recipe, overrides, meant_fields(), dev_fields(wanted, overrides))
    given = {"seed": seed, "epochs": epochs, "lr": lr, "batch_size": batch_size, "device": device}
    chosen = asked(
        chosen,
        given,
        overrides,
        vocabulary,
        student=student,
        layers=init_from_teacher,
        config=config,
        same_tokenizer=same_tokenizer,
    )
    called = check_callbacks(callbacks)
    module = student if isinstance(student, nn.Module) else None
    mixture = in_students_words(mixture, chosen, module, progress, trust=trust_remote_code)
    source = mixture.first
    require_points(chosen, mixture.caches)
    require_dev_files(chosen.dev, mixture.by_head)
    files = of_heads(eval_file, mixture.heads, "--eval")
    teachers = of_heads(eval_teacher, mixture.heads, "--eval-teacher")
    require_scored(files, mixture.by_name)
    evaluations = {
        name: check_evaluation(
            files.get(name),
            teachers.get(name),
            cache.plan.config,
            options_of(chosen.dev, name),
            head=name,
            trust_remote_code=trust_remote_code,
        )
        for name, cache in mixture.by_name.items()
    }
    run = Stages(
        source,
        parts,
        chosen,
        Path(out),
        resume=resume,
        progress=progress,
        mixture=mixture,
        module=module,
        trust_remote_code=trust_remote_code,
    )
    trusted = trust_remote_code or module is not None
    require_one(run.config, 1, eval=eval_file is not None)
    if eval_file is not None and (why := unloadable(run.config)):
        raise ConfigError(
            f"{why}, so its folder cannot be loaded and scored: give its class a `settings` "
            "(docs/python.md), or leave the evaluation (--eval) out"
        )
    configs = dict(zip(mixture.by_name, mixture.configs(run.config), strict=False))
    for name, corpus in evaluations.items():
        task = mixture.by_name[name].plan.task
        if corpus is not None and task.labelled:
            check_labels(corpus, configs[name], task)
    if run.choice is not None:
        devs = run.choice.dev.each
        for number, (name, cache) in enumerate(mixture.by_name.items()):
            if name in files:
                tested = file_plan(files[name], cache.original, configs[name], run.progress)
                run.run.notes += require_untested(devs[number], tested, files[name])
    metrics = run.train(called, teachers if mixture.heads else eval_teacher)
    if files and run.first:
        for name, file in files.items():
            told = metrics["heads"][name] if mixture.heads else metrics
            told["evaluation"] = _evaluate(run, name, file, teachers.get(name), trusted)
        run.record(metrics)
    return TrainResult(run.folder, metrics, run.first)


def in_students_words(
    mixture: Mixture,
    recipe: Recipe,
    module: nn.Module | None,
    progress: Progress,
    *,
    trust: bool,
) -> Mixture:
    """The caches as the student of a recipe reads their texts: by its own tokens, where it says."""
    tokenizer, fewer = (recipe.student.get(name, "") for name in ("tokenizer", "vocabulary"))
    if tokenizer:
        return in_other_words(mixture, tokenizer, progress)
    if fewer:
        spec = student_spec(recipe, module, trust_remote_code=trust)
        return with_fewer_tokens(mixture, fewer, recipe, spec, progress)
    return mixture


def _evaluate(run: Stages, head: str, file: Any, teacher: str | Path | None, trusted: bool) -> Json:
    from kdcache.evaluation.evaluator import evaluate

    cache = run.mixture.by_name[head]
    # The teacher's side may not all be there, or be of points that no file holds.
    known = cache if run.parts is None and not cache.at_points else None
    scores = evaluate(
        run.folder / head,
        file,
        cache=known,
        teacher=teacher,
        trust_remote_code=trusted,
        progress=run.progress,
        **same_columns(cache.plan.config.corpus, file),
    )
    return {"file": short(file), **scores}
