"""Students that are no transformers: small classifiers to distil into, as torch modules.

STUDENTS is the table of those that a command line and a folder name. A class in it takes the
keywords `vocabulary` and `outputs`, has a default for every other, tells all of them in its
`settings`, and is otherwise a module as `kdcache.train(student=...)` takes any (docs/python.md).
Its word embeddings, if it has any, are called `embeddings`.
"""

from __future__ import annotations

from torch import nn

from kdcache.students.bilstm import BiLSTM
from kdcache.students.static import StaticEmbeddings
from kdcache.students.together import Together

__all__ = ["STUDENTS", "BiLSTM", "StaticEmbeddings", "Together"]

STUDENTS: dict[str, type[nn.Module]] = {"bilstm": BiLSTM, "static": StaticEmbeddings}
"""By the name that `--student NAME:setting=value` and `kdcache_student.json` give them."""
