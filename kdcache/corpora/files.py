"""Which files a path, folder, glob or list of those means."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.errors import ConfigError, CorpusError

KINDS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
}
"""Suffixes of corpus files, and the kind of each."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")


def files_of(source: Any) -> list[Path]:
    """The files of a path, a folder, a glob or a list of those, in order, each once.

    A folder and a glob give files of one kind: those with a suffix in `KINDS`, in the order of
    their paths. What is hidden, that is, whose name or a folder's on the way to it begins with a
    dot, is left out.

    Raises CorpusError if there is no file, a file comes twice, or kinds are mixed.
    """
    if not isinstance(source, (list, tuple)):
        return _found(source)
    found = [path for item in source for path in _found(item)]
    for path, times in Counter(path.resolve() for path in found).items():
        if times > 1:
            raise CorpusError(f"{path} is in the corpus {times} times: name it once")
    return found


def require_no_input(path: Path, source: Any) -> None:
    """Raise ConfigError if the file `path`, to be written, is one of a corpus."""
    paths = isinstance(source, (str, Path, list, tuple))
    if paths and path.exists() and any(path.samefile(file) for file in files_of(source)):
        raise ConfigError(
            f"{path} is a file of the corpus, and would be written over: name another"
        )


def kind_of(path: Path) -> str:
    """The kind of a corpus file; CorpusError if its suffix is none of ours."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        unpack = "; unpack it first" if path.suffix.lower() in COMPRESSED else ""
        raise CorpusError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; "
            f"a corpus is one of {', '.join(KINDS)}{unpack}"
        )
    return kind


def _found(source: Any) -> list[Path]:
    if not str(source):
        raise CorpusError("a corpus is named by a path; got an empty one")
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _of_one_kind(path, _in_folder(path))
    matches = sorted(Path(match) for match in glob.glob(str(source), recursive=True))
    if not matches:
        raise CorpusError(f"no such corpus: {source}")
    if len(matches) == 1 and matches[0].is_file():
        return matches
    inner = [_readable([match]) if match.is_file() else _in_folder(match) for match in matches]
    # A pattern such as data/** matches a folder and, once more, what is in it.
    return _of_one_kind(source, list(dict.fromkeys(path for found in inner for path in found)))


def _in_folder(folder: Path) -> list[Path]:
    return _readable(p for p in sorted(folder.rglob("*")) if _is_open(p.relative_to(folder)))


def _readable(paths: Iterable[Path]) -> list[Path]:
    """Files of a kind we know; CorpusError for one that would be if it were unpacked."""
    found = []
    for path in paths:
        if path.suffix.lower() in COMPRESSED and Path(path.stem).suffix.lower() in KINDS:
            raise CorpusError(f"{path} is compressed: unpack it, or take it out of the folder")
        if path.suffix.lower() in KINDS and path.is_file():
            found.append(path)
    return found


def _is_open(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _of_one_kind(source: Any, paths: Sequence[Path]) -> list[Path]:
    if not paths:
        raise CorpusError(f"{source} holds no corpus files ({', '.join(KINDS)})")
    first = {kind_of(path): path for path in reversed(paths)}
    if len(first) > 1:
        names = " and ".join(str(path) for path in sorted(first.values()))
        raise CorpusError(
            f"{source} mixes files of several kinds, such as {names}: name the files or a pattern "
            "that is the corpus"
        )
    return list(paths)
