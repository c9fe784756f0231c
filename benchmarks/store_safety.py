"""What a cache survives: racing writers killed at random, flipped bits, lost and exchanged objects.

    python benchmarks/store_safety.py FOLDER [--kills 300] [--flips 2000] [--no-s3]

Counts, no timings: a loaded machine gives the same figures. FOLDER takes scratch files. Every
figure named in MUST_BE_ZERO has to be 0; the script fails, and writes nothing, if one is not.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.racing import Race, apart, contents, make_cache, mixed_parts, write_all
from benchmarks.record import save
from kdcache.errors import CacheError
from kdcache.maintenance.verifying import find_damage
from kdcache.plans import Array
from kdcache.store import open_cache

WRITERS = 3
PARTS = 24
MUST_BE_ZERO = {
    "failures",
    "mixed_parts",
    "unlike_rounds",
    "damage",
    "litter",
    "undetected",
    "unnamed",
    "wrong",
}


def race(place: str, kills: int, longest: float, *, flavours: bool, seed: int) -> dict[str, int]:
    """Rounds of racing writers until `kills` of them were killed."""
    found = Counter(mixed_parts=0, unlike_rounds=0, damage=0, litter=0)
    whole, run = apart(_alone, f"{place}-alone"), Race(WRITERS, seed)
    while run.kills < kills:
        cache = f"{place}-{run.rounds}"
        run.run(cache, PARTS, min(kills - run.kills, 60), flavours, longest)
        found.update(apart(_judge, cache, flavours, None if flavours else whole))
        print(f"{place}: {run.kills} kills, {run.rounds} rounds, {dict(found)}", flush=True)
    return {
        "writers": WRITERS,
        "kills": run.kills,
        "rounds": run.rounds,
        "parts": run.parts,
        "failures": run.failures,
        **found,
    }


def _alone(place: str) -> dict[str, bytes]:
    """The cache as one writer makes it whom nobody disturbs."""
    make_cache(place, PARTS)
    write_all(place, 0)
    return contents(place)


def _judge(place: str, flavours: bool, whole: dict[str, bytes] | None) -> dict[str, int]:
    """What is wrong with a finished cache."""
    return {
        "mixed_parts": mixed_parts(place, WRITERS, flavours),
        "unlike_rounds": int(whole is not None and contents(place) != whole),
        "damage": len(find_damage(place, full=True)),
        "litter": len(contents(f"{place}.staging")),
    }


def everything(root: Path) -> dict[str, Array]:
    """All that a loss can be fed, as the reader gives it."""
    cache = open_cache(root)
    cache.require_complete()
    return {name: value.numpy() for name, value in cache.batch(cache.plan.docs).items()}


class Trials:
    """Damage done to a cache one way at a time, and who noticed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.whole, self.right = contents(str(root)), everything(root)
        self.counts: Counter[str] = Counter(tried=0, undetected=0, unnamed=0, wrong=0)

    def look(self, keys: tuple[str, ...]) -> None:
        """Ask `verify` and the reader, count what they say, and put everything back."""
        found = find_damage(self.root, full=True)
        objects = {finding.object for finding in found}
        self.counts["tried"] += 1
        self.counts["undetected"] += not found
        self.counts["unnamed"] += not objects & set(keys)
        try:
            read = everything(self.root)
        except CacheError:
            self.counts["refused by the reader"] += 1
        else:
            same = all(np.array_equal(read[name], self.right[name]) for name in self.right)
            self.counts["not read by it" if same else "wrong"] += 1
        for key in keys:
            (self.root / key).write_bytes(self.whole[key])

    def flips(self, count: int, seed: int) -> None:
        """Single bits: objects of data, index, metadata and records alike."""
        draw = random.Random(seed)
        for _ in range(count):
            key = draw.choice(sorted(self.whole))
            data = bytearray(self.whole[key])
            bit = draw.randrange(8 * len(data))
            data[bit // 8] ^= 1 << bit % 8
            (self.root / key).write_bytes(data)
            self.look((key,))

    def accidents(self) -> None:
        """Every object truncated, emptied, lengthened, zeroed and deleted."""
        for key, data in self.whole.items():
            for other in (data[:-1], data[: len(data) // 2], b"", data + b"\0", bytes(len(data))):
                (self.root / key).write_bytes(other)
                self.look((key,))
            (self.root / key).unlink()
            self.look((key,))

    def swaps(self) -> None:
        """Every pair of objects of one size and other bytes, exchanged."""
        for one, other in itertools.combinations(sorted(self.whole), 2):
            first, second = self.whole[one], self.whole[other]
            if len(first) == len(second) and first != second:
                (self.root / one).write_bytes(second)
                (self.root / other).write_bytes(first)
                self.look((one, other))


def trials(folder: Path, flips: int) -> dict[str, Any]:
    """Damage to a finished cache of few parts, that every object is tried."""
    root = folder / "victim"
    make_cache(str(root), 3)
    write_all(str(root), 0)
    results = {}
    for name, arguments in {"flips": (flips, 7), "accidents": (), "swaps": ()}.items():
        run = Trials(root)
        getattr(run, name)(*arguments)
        results[name] = dict(run.counts)
        print(f"{name}: {dict(run.counts)}", flush=True)
    return results


def full_disk(folder: Path) -> dict[str, Any]:
    """Builds on a file system of every size up to what the cache needs, then one that has room."""
    make_cache(str(folder / "room"), 6)
    write_all(str(folder / "room"), 0)
    whole = contents(str(folder / "room"))
    counts: Counter[str] = Counter(tried=0, failures=0, litter=0, unlike_rounds=0)
    for kilobytes in range(64, 1600, 128):
        with _disk(folder / "disk", kilobytes) as disk:
            if disk is None:
                return {"not tried": "needs the right to mount a tmpfs"}
            counts["tried"] += 1
            try:
                make_cache(str(disk / "c"), 6)
                write_all(str(disk / "c"), 0)
            except CacheError as error:
                counts["refused"] += 1
                counts["failures"] += "the disk is full; free some space" not in str(error)
                counts["litter"] += len(
                    [p for p in disk.iterdir() if p.name not in ("c", "c.staging")]
                )
                counts["litter"] += len(_staged(disk / "c.staging"))
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            make_cache(str(disk / "c"), 6)
            write_all(str(disk / "c"), 0)
            counts["unlike_rounds"] += contents(str(disk / "c")) != whole
            counts["litter"] += (disk / "c.staging").exists()
    print(f"full disk: {dict(counts)}", flush=True)
    return dict(counts)


def _staged(staging: Path) -> list[Path]:
    """Objects that were staged for a part that nobody has committed."""
    return [path for path in staging.rglob("*") if path.is_file() and "claims" not in path.parts]


@contextmanager
def _disk(path: Path, kilobytes: int) -> Iterator[Path | None]:
    """A file system of that size; None where this user may not mount one."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def bucket() -> Iterator[str]:
    """A bucket on a real S3 server on loopback."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.object_server"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    try:
        request = urllib.request.Request(f"{endpoint}/races", method="PUT")
        urllib.request.urlopen(request).read()
        yield "s3://races"
    finally:
        server.kill()
        server.wait()


def zeros(figures: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Figures that have to be 0."""
    if isinstance(figures, dict):
        for name, value in figures.items():
            yield from zeros(value, f"{path}/{name}")
    elif path.rpartition("/")[2] in MUST_BE_ZERO:
        yield path, figures


def main() -> None:
    """Run everything and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--s3", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    shutil.rmtree(given.folder, ignore_errors=True)
    given.folder.mkdir(parents=True)
    local = str(given.folder / "race")
    races = {
        "local": race(local, given.kills, 0.12, flavours=False, seed=1),
        "local, writers that differ": race(f"{local}-b", given.kills, 0.12, flavours=True, seed=2),
    }
    figures: dict[str, Any] = {
        "races": races,
        "damage": trials(given.folder, given.flips),
        "full disk": full_disk(given.folder),
    }
    if given.s3:
        with bucket() as url:
            races["s3"] = race(f"{url}/a", given.kills, 0.6, flavours=False, seed=3)
            races["s3, writers that differ"] = race(
                f"{url}/b", given.kills, 0.6, flavours=True, seed=4
            )
    wrong = [(name, value) for name, value in zeros(figures) if value]
    if wrong:
        sys.exit(f"not 0: {wrong}")
    save("store_safety", figures)


if __name__ == "__main__":
    main()
