"""A source distribution of the form of the one that holds the demo's corpus, with other texts."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence

from kdcache.demo import reviews

SETUP = f"""from setuptools import setup
setup(name={reviews.PACKAGE!r}, version={reviews.VERSION!r})
"""
METADATA = f"Metadata-Version: 1.0\nName: {reviews.PACKAGE}\nVersion: {reviews.VERSION}\n"


def source_distribution(texts: Sequence[str]) -> bytes:
    """An archive with `texts` as sentences of every domain.

    Ratings go round from -2 to 2; the first text comes twice, and lines end as on Windows.
    """
    ratings = {}
    for domain, name in reviews.DOMAINS.items():
        rows = [(n % 5 - 2, f"{domain}: {text}") for n, text in enumerate([*texts, texts[0]])]
        lines = [f"{n}\t{rating}\t{text}\r\n" for n, (rating, text) in enumerate(rows, 1)]
        ratings[f"hutto_ICWSM_2014/{name}_GroundTruth.txt"] = "".join(lines).encode()
    inside = {reviews.RATINGS: _tar(ratings), "setup.py": SETUP.encode()}
    inside["PKG-INFO"] = METADATA.encode()
    root = f"{reviews.PACKAGE}-{reviews.VERSION}"
    return _tar({f"{root}/{name}": content for name, content in inside.items()})


def _tar(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()
