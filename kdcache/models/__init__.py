"""Models: tokenizers, teachers and students, as transformers' Auto classes load them."""

from kdcache.models.alone import check_alone
from kdcache.models.auto import load_config
from kdcache.models.classifier_outputs import check_classifier, classes_of
from kdcache.models.hooks import TAPS, check_taps
from kdcache.models.run import plain_head, run
from kdcache.models.student import StudentSpec, load_student, student_sizes
from kdcache.models.teacher import Teacher, load_teacher, pick_device
from kdcache.models.tokenizer import Tokenizer, load_tokenizer, save_tokenizer

__all__ = [
    "TAPS",
    "StudentSpec",
    "Teacher",
    "Tokenizer",
    "check_alone",
    "check_classifier",
    "check_taps",
    "classes_of",
    "load_config",
    "load_student",
    "load_teacher",
    "load_tokenizer",
    "pick_device",
    "plain_head",
    "run",
    "save_tokenizer",
    "student_sizes",
]
