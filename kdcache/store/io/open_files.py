"""Open files, few at a time whatever the number of arrays and shards.

Reads are positional (`preadv`), so threads share a descriptor: nothing here has a lock that a fork
could leave held, nor a position in a file that two could move. Every step on a table is one that
the interpreter does not interrupt; two threads that open the same file at once merely open it
twice.

An open file belongs to one object in one process. A copy of a Descriptor, pickled or not, and the
one that a forked child inherits open the file themselves when they are used: a descriptor's number
that two would close would be closed under whoever opened another file in between.
"""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

from kdcache.store.io.download_cache import open_file
from kdcache.store.io.object_path import Root

OPEN_FILES = 256  # a process is commonly allowed 1,024, and training opens files of its own


class Handle:
    """An open file, closed when the last user lets go of it: a reader's stays while it reads."""

    def __init__(self, path: Root) -> None:
        self.number = open_file(path)
        status = os.fstat(self.number)
        self.size = status.st_size
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # `close` is a default because names of a module are gone when the interpreter ends.
        if hasattr(self, "number"):  # it is not where opening failed
            close(self.number)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file belongs to one process and one object; copy its Descriptor")


class Descriptor:
    """A file that is opened when used, and closed after OPEN_FILES others were used since."""

    def __init__(self, path: Root) -> None:
        self.path = path
        self.current: Handle | None = None

    def __reduce__(self) -> tuple[type[Descriptor], tuple[Root]]:
        return Descriptor, (self.path,)

    def handle(self) -> Handle:
        """The open file; OSError if it cannot be opened."""
        handle = self.current
        if handle is None:
            handle = self.current = Handle(self.path)
        _recent.pop(id(self), None)
        _recent[id(self)] = weakref.ref(self)
        while len(_recent) > OPEN_FILES:
            oldest = _recent.popitem(last=False)[1]()
            if oldest is not None:
                oldest.current = None
        return handle


_recent: OrderedDict[int, weakref.ref[Descriptor]] = OrderedDict()


def _forget() -> None:
    """In a forked child: close what the parent had open, so that what is read is opened anew."""
    for reference in list(_recent.values()):
        descriptor = reference()
        if descriptor is not None:
            descriptor.current = None
    _recent.clear()


os.register_at_fork(after_in_child=_forget)
