"""The folder of a shipped model: everything it needs to run, and nothing of torch."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from kdcache.manifest import Json
from kdcache.models.tokenizer import serve_with
from kdcache.shipping.source import Source

MODEL, SETTINGS, PROGRAM = "model.onnx", "inference.json", "infer.py"
CARD, REPORT = "README.md", "report.json"
ABOUT = (CARD, REPORT)
"""Files that tell of a model, and do not run."""


def write_folder(source: Source, folder: Path) -> Path:
    """Make the folder of a model with all files but the model's and the card; returns it."""
    folder.mkdir(parents=True)
    for name, content in source.tokenizer.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    settings = source.settings
    serve_with(folder, length=settings["max_length"], pad_id=settings["pad_id"])
    source.torch.model.config.save_pretrained(folder)
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / SETTINGS).write_text(text, "utf-8")
    (folder / PROGRAM).write_bytes(files("kdcache.shipping").joinpath(PROGRAM).read_bytes())
    return folder


def bytes_of(folder: Path) -> int:
    """Bytes of the files of a shipped model that run."""
    about = {folder / name for name in ABOUT}
    return sum(
        path.stat().st_size for path in folder.rglob("*") if path.is_file() and path not in about
    )


def write_report(folder: Path, report: Json) -> None:
    """Keep what was reported of a model beside it, but for the place it was written to."""
    kept = {name: value for name, value in report.items() if name != "folder"}
    (folder / REPORT).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")
