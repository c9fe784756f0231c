"""The tables of the documentation: where they stand, their columns and what fills them."""

from __future__ import annotations

from functools import partial

from loss_map_weight_plot import COLUMNS
from page_heads import parts_head, parts_rows
from page_parts import (
    COMPARISON,
    FIDELITY,
    KERNELS,
    METHODS,
    OTHERS,
    README,
    RECIPES,
    RESULTS,
    SCALE,
    SST2,
    STORE,
    Table,
)
from page_recipes import (
    ASKED,
    GAINED,
    MORE,
    ON_SST2,
    SPOKEN,
    asked_rows,
    combined_rows,
    everywhere_head,
    everywhere_rows,
    gained_rows,
    more_rows,
    recipes_rows,
    spoken_rows,
)
from page_rows import (
    GAINS,
    bytes_rows,
    domains_rows,
    gpu_kernels_rows,
    hidden_rows,
    inside_rows,
    kernels_rows,
    levels_rows,
    online_rows,
    others_rows,
    pays_rows,
    questions_rows,
    readers_head,
    readers_rows,
    ship_rows,
    steps_rows,
    ways_rows,
)
from page_scale import SCALE_HEAD, scale_rows

BYTES_HEAD = ("format", "bytes a row", "KL of the codes, nats", "gradient's error, T=1", "T=2")
PAYS_HEAD = (
    "kept",
    "masked LM: bytes a row",
    "loss, soft labels alone",
    "against all logits, by seed",
    "loss, hard labels too",
    "40 classes: accuracy",
)
DOMAINS_HEAD = (
    "trained on: scored on",
    "labels of documents; seeds",
    "teacher",
    "`finetune`",
    "`kd`",
    "`hidden`",
    *(f"{pair}, points (95% interval)" for pair in GAINS),
)
LEVELS_HEAD = (
    "trained on, scored",
    "from labels, %",
    "outputs, %",
    "and hidden states, %",
    "outputs over labels, points (95% interval)",
    "hidden states over outputs",
)
INSIDE_HEAD = (
    "method",
    "steps",
    "largest difference of a loss, fp16",
    "int8",
    "as `build --for` keeps it",
)
ONLINE_HEAD = (
    "compared",
    "SST-2, dense logits, 4,800 sentences, 3 seeds",
    "WikiText-2, masked, top-64 in 8-bit codes, 2 seeds",
)
STEPS_HEAD = (
    "a step",
    "hard labels",
    "from the cache",
    "teacher in the loop",
    "cache / hard",
    "loop / cache",
    "ceiling",
    "waits for data",
)
WAYS_HEAD = (
    "the loss of a step / plain cross-entropy",
    "135M",
    "135M, pages kept",
    "500M",
    "500M, pages kept",
)
KERNELS_HEAD = (
    "op",
    "ms",
    "of limit",
    "memory",
    "best rival: times as long",
    "its memory",
    "eager",
)
CPU_HEAD = (*KERNELS_HEAD[:-1], "eager (pages kept)")
GPU_HEAD = ("op on an H100", "sizes", *KERNELS_HEAD[1:])
RECIPES_HEAD = ("recipe", "student learns from", "asks for", "after")
SHIP_HEAD = ("shipped", "on disk", "p50, ms", "p95, ms", "peak memory", "accuracy", "as torch")

ALL = (
    Table(STORE, "How fast it reads", "store", readers_head, readers_rows),
    Table(FIDELITY, "Bytes against error", "fidelity", BYTES_HEAD, partial(bytes_rows, "fidelity")),
    Table(
        FIDELITY,
        "A large vocabulary",
        "fidelity_wide",
        ("of 128,256 tokens", *BYTES_HEAD[1:]),
        partial(bytes_rows, "fidelity_wide"),
    ),
    Table(
        FIDELITY,
        "Hidden states",
        "hidden_fidelity",
        ("hidden states", "bits a value", "error"),
        hidden_rows,
    ),
    Table(FIDELITY, "What a student pays", "codec_quality_masked_lm", PAYS_HEAD, pays_rows),
    Table(README, "Outputs alone, or hidden states too", "gains", LEVELS_HEAD, levels_rows),
    Table(METHODS, "What distillation buys", "gains", DOMAINS_HEAD, domains_rows),
    Table(
        METHODS,
        "From the cache or with the teacher in the loop",
        "cached_vs_online_sst2",
        ONLINE_HEAD,
        online_rows,
    ),
    Table(
        METHODS,
        "From the cache or with the teacher in the loop",
        "cached_vs_online_methods",
        INSIDE_HEAD,
        inside_rows,
    ),
    Table(METHODS, "What a step costs", SST2, STEPS_HEAD, steps_rows),
    Table(METHODS, "What a step costs", "steps", WAYS_HEAD, ways_rows),
    Table(METHODS, "A student that ships", "ship", SHIP_HEAD, ship_rows),
    Table(RECIPES, "All of them", "", RECIPES_HEAD, recipes_rows),
    *(
        Table(RECIPES, "What each bought", name, (student, *GAINED), partial(gained_rows, name))
        for name, student in ON_SST2.items()
    ),
    Table(RECIPES, "With more than the corpus", "methods", MORE, more_rows),
    Table(RECIPES, "Language models", "language_models", SPOKEN, spoken_rows),
    *(
        Table(RECIPES, "Settings, on dev", name, (student, *ASKED), partial(asked_rows, name))
        for name, student in (("settings", "2 layers of the teacher"), ("settings_new", "a BiLSTM"))
    ),
    Table(RECIPES, "On other corpora", "everywhere", everywhere_head, everywhere_rows),
    Table(RECIPES, "Losses, maps and weights", "loss_map_weight", COLUMNS, combined_rows),
    Table(SCALE, "What grew", "memory", SCALE_HEAD, scale_rows),
    Table(OTHERS, "What was asked", COMPARISON, ("asked", "meaning"), questions_rows),
    Table(
        OTHERS, "What was read", COMPARISON, ("project", "asked", "answer", "read in"), others_rows
    ),
    Table(KERNELS, "Against rivals", "kernels_cpu", CPU_HEAD, partial(kernels_rows, "kernels_cpu")),
    Table(
        KERNELS,
        "Against rivals",
        "kernels_pairs_cpu",
        ("op on pairs of tokens", *CPU_HEAD[1:]),
        partial(kernels_rows, "kernels_pairs_cpu"),
    ),
    Table(KERNELS, "On a GPU", "kernels_h100", GPU_HEAD, gpu_kernels_rows),
    Table(KERNELS, "The parts of a head", "", parts_head, parts_rows),
)
TABLES = tuple(
    table for table in ALL if not table.result or (RESULTS / f"{table.result}.json").exists()
)
"""Those of the results that are there: a benchmark that was not run yet has no table."""
