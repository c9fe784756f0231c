"""A worked example of every command, for the end of its --help."""

from __future__ import annotations

TAIL = "--quiet and --debug work with every command."

EXAMPLES = {
    "kdcache": (
        "kdcache build train.csv --teacher ./teacher --task text-classification",
        "    --out train.cache",
        "kdcache train train.cache --recipe kd --init-from-teacher 2-4-6 --out student",
        "kdcache evaluate student dev.csv --cache train.cache",
        "kdcache ship student shipped --int8 --measure dev.csv --teacher ./teacher",
    ),
    "plan": (
        "kdcache plan train.csv --tokenizer ./teacher --task text-classification",
        "    --out train.plan --signal logits:dense --signal hidden:layers=2-4-6",
    ),
    "build": (
        "kdcache build train.csv --teacher ./teacher --task text-classification",
        "    --out train.cache --signal logits:dense --signal hidden:layers=2-4-6",
        "kdcache build train.plan --teacher ./teacher --task text-classification",
        "    --out train.cache --dry-run",
        "kdcache build --config build.toml --out other.cache",
    ),
    "inspect": ("kdcache inspect train.cache", "kdcache inspect train.cache --json"),
    "verify": (
        "kdcache verify train.cache --full",
        "kdcache verify train.cache --repair --spot 50 --teacher ./teacher",
    ),
    "copy": (
        "kdcache copy s3://bucket/train.cache train.cache",
        "kdcache copy train.cache s3://bucket/train.cache --json",
    ),
    "merge": ("kdcache merge logits.cache hidden.cache both.cache",),
    "export": (
        "kdcache export train.cache exported --format parquet",
        "kdcache export s3://bucket/train.cache exported --raw",
    ),
    "teach": (
        "kdcache teach ./encoder labelled.csv --out teacher",
        "kdcache teach ./encoder train.csv --dev dev.csv --eval test.csv",
        "    --out teacher --lr 3e-5,1e-4,3e-4 --epochs 5 --class-weights none",
    ),
    "augment": (
        "kdcache augment train.csv --masked-lm ./bert --out more.jsonl --samples 5",
        "kdcache build more.jsonl --ignore-columns parent,round,operation",
        "    --teacher ./teacher --task text-classification --out more.cache",
    ),
    "ascend": (
        "kdcache ascend train.cache --teacher ./teacher --out boundary.cache",
        "kdcache merge train.cache boundary.cache both.cache",
        "kdcache train both.cache --recipe bss --init-from-teacher 2-4-6 --out one",
        "kdcache ascend train.cache --teacher ./teacher --student student",
        "    --out points.cache --eta 0.5",
    ),
    "train": (
        "kdcache train train.cache --recipe kd --init-from-teacher 2-4-6",
        "    --out student --eval test.csv --epochs 3 --lr 1e-4 --seed 1",
        "kdcache train train.cache --recipe kd --init-from-teacher 2-4-6",
        "    --out student --dev-split 10% --epochs 10 --patience 2",
        "kdcache train one.cache two.cache --mix 0.7,0.3 --recipe kd",
        "    --out student --init-from-teacher 2-4-6",
        "kdcache train sst2=sst2.cache mrpc=mrpc.cache --mix sqrt --recipe mkd",
        "    --out student --student ./small --dev-split 10% --eval sst2=test.csv",
        "kdcache train train.cache --recipe mine.toml --student ./small",
        "    --out student --set losses.kl.temperature=4 --device cpu",
        "kdcache train train.cache --recipe annealing-kd --init-from-teacher 2-4-6",
        "    --out student --set stages.labels.training.num_train_epochs=1",
        "kdcache train train.cache --recipe kd --student ./xlm-r-small --out student",
        "    --vocabulary corpus",
    ),
    "profile": (
        "kdcache profile train.cache --recipe kd --init-from-teacher 2-4-6",
        "kdcache profile train.cache --recipe mine.toml --student ./small",
        "    --steps 50 --out profile --device cuda",
        "kdcache profile --build train.csv --teacher ./teacher",
        "    --task text-classification",
    ),
    "sweep": (
        "kdcache sweep train.cache --out sweep --set recipe=kd,finetune",
        "    --set layers=2,3 --seeds 3 --dev dev.csv --workers 2",
        "kdcache sweep train.cache --out sweep --grid grid.toml --dev dev.csv",
        "    --teacher ./teacher --max-mb 20 --max-ms 5 --max-drop 1.0 --by domain",
        "kdcache sweep train.cache --out search --search 20 --dev dev.csv",
        "    --set layers=1,2,3 --set training.learning_rate=1e-5..1e-3",
    ),
    "evaluate": (
        "kdcache evaluate student dev.csv --cache train.cache",
        "kdcache evaluate student test.csv --teacher ./teacher --by domain",
        "    --by length --predictions said.csv",
    ),
    "compare": (
        "kdcache compare student --cache train.cache",
        "kdcache compare student dev.csv --teacher ./teacher --json",
    ),
    "ship": (
        "kdcache ship student shipped --int8 --measure dev.csv --teacher ./teacher",
        'python shipped/infer.py "a text to classify"',
    ),
    "report": (
        "kdcache report student shipped train.cache --markdown report.md",
        "kdcache report one two --eval test.csv --teacher ./teacher --by label",
        "    --out both.html",
    ),
    "recipes": (
        "kdcache recipes",
        "kdcache recipes kd > mine.toml",
        "kdcache recipes --cache train.cache --student-layers 2",
    ),
    "bench": ("kdcache bench kernels --out bench",),
    "bench kernels": (
        "kdcache bench kernels --op topk_kl --vocab 30522,128256 --out bench",
        "kdcache bench kernels --op topk_kl --compare bench/kernels.json",
        "kdcache bench kernels --read bench/kernels.json --limit-from H100",
    ),
    "bench fidelity": (
        "kdcache bench fidelity wiki.txt --teacher ./teacher --task masked-lm",
        "    --out bench",
    ),
    "bench store": (
        "kdcache bench store --out bench",
        "kdcache bench store train.cache --compare bench/store.json",
    ),
    "demo": ("kdcache demo", "kdcache demo --corpus docstrings --out offline-demo"),
}


def example(command: str) -> str:
    """The example as the epilog of a command; the escape keeps its lines as they are."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in EXAMPLES[command]), "", TAIL])
