"""Which files a path, folder, glob or list of those means."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.corpora.json_arrays import is_array
from kdcache.corpora.packed import PACKED, is_packed, unpacked
from kdcache.errors import ConfigError, CorpusError

KINDS: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob2": "conll",
}
"""Suffixes of corpus files, and the kind of each; a suffix of `PACKED` may follow."""

ARCHIVES = (".zip",)
"""Suffixes of compressed files that may hold several."""

COMPRESSED_INSIDE = (".parquet",)
"""Suffixes of corpus files that are not read compressed once more."""


def files_of(source: Any) -> list[Path]:
    """The files of a path, a folder, a glob or a list of those, in order, each once.

    A folder and a glob give files of one kind: those with a suffix in `KINDS`, compressed or not,
    in the order of their paths. What is hidden, that is, whose name or a folder's on the way to it
    begins with a dot, is left out, and so is JSON that is no list.

    Raises CorpusError if there is no file, a file comes twice, or kinds are mixed.
    """
    items = source if isinstance(source, (list, tuple)) else [source]
    found = [path for item in items for path in _found(item)]
    for path, times in Counter(path.resolve() for path in found).items():
        if times > 1:
            raise CorpusError(f"{path} is in the corpus {times} times: name it once")
    plain = {path.resolve(): path for path in found if not is_packed(path)}
    for path in found:
        if is_packed(path) and (twin := plain.get(unpacked(path.resolve()))):
            raise CorpusError(
                f"{twin} and {path} are one file by their names: leave one of them out"
            )
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
    kind = KINDS.get(unpacked(path).suffix.lower())
    if kind is None or _is_unread(path):
        unpack = "; unpack it first" if _is_unread(path) else ""
        raise CorpusError(
            f"{path}: cannot read {path.suffix or 'a file without a suffix'}; "
            f"a corpus is one of {', '.join(KINDS)}, or one of these but Parquet compressed to "
            f"{', '.join(PACKED)}{unpack}"
        )
    return kind


def _is_unread(path: Path) -> bool:
    """Whether a file would be one of a corpus if it were unpacked."""
    inner = Path(path.stem).suffix.lower()
    if path.suffix.lower() in ARCHIVES:
        return inner in KINDS
    return is_packed(path) and inner in COMPRESSED_INSIDE


def _found(source: Any) -> list[Path]:
    if not isinstance(source, str | Path):
        raise CorpusError(f"a list names files; got {type(source).__name__}: make one of several")
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
        if _is_unread(path):
            raise CorpusError(f"{path} is compressed: unpack it, or take it out of the folder")
        kind = KINDS.get(unpacked(path).suffix.lower())
        if kind is not None and path.is_file() and (kind != "json" or is_array(path)):
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
