"""What is lost in distillation: who of teacher and student is right, and how far they are apart."""

from kdcache.evaluation.beside import confusion, of_one_class
from kdcache.losses import Pair, SoftKL
from tests.methods import Found, Given, dense, one_each, value


def beside(given: Given) -> Found:
    """The report's shares and divergence; the gradient is that of the loss of its formula."""
    student, teacher = given["s_logits"], dense(given["t_logits"])
    found = of_one_class(student.detach(), teacher, given["labels"])
    shares = found.shares()
    names = ("agreement", "lost", "gained", "both_wrong")
    parts = {f"out_{name}": student.new_tensor(shares[name]) for name in names}
    parts["out_confusion"] = confusion(student, teacher)
    parts["loss"] = student.new_tensor(shares["divergence"])
    loss = value(SoftKL(), [Pair(student, teacher)], one_each(len(student)), space="document")
    return Found(loss=loss, parts=parts)


CASES = {"what_is_lost": beside}
