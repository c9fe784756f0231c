"""What a backend of relation_kl and attention_mse is told besides the student's vectors."""

from typing import NamedTuple

from torch import Tensor

KINDS = ("divergence", "scores", "probabilities")
"""What is compared: relations by KL, scores by squares, relations by squares."""


class Teacher(NamedTuple):
    """What the teacher's scores are made of, under the names of the arguments."""

    teacher: Tensor
    teacher_keys: Tensor | None


class How(NamedTuple):
    """How scores are made and compared; `need_...`: whether the gradient is wanted.

    Scores are X Y^T times `scale` (`teacher_scale`), of each of `parts` parts of the columns.
    """

    kind: str
    parts: int
    scale: float
    teacher_scale: float
    chunk_bytes: int
    need_student: bool
    need_keys: bool
