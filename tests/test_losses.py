"""Losses against plain float64 formulas, with the conventions of the papers they come from."""

import pytest
import torch
from torch.nn import functional

from kdcache.errors import ConfigError
from kdcache.losses import (
    CacheSpec,
    Hard,
    HiddenMSE,
    LogitMSE,
    SoftKL,
    hard_loss,
    soft_and_hard,
)
from kdcache.plans.batch import Batch, Rows
from kdcache.signals import (
    DenseLogits,
    Hidden,
    ModelSizes,
    SoftLabels,
    Tap,
    TopKLogits,
    select,
)
from kdcache.tasks import TASKS
from kdcache.training.objective import Objective
from kdcache.training.recipe import load_recipe
from tests.activations import activations

TEACHER = ModelSizes(outputs=7, hidden=24, layers=4)
STUDENT = ModelSizes(outputs=7, hidden=24, layers=2)
NARROW = ModelSizes(outputs=7, hidden=10, layers=2)
LENGTHS = torch.tensor([5, 1, 3])


def cache_spec(
    *signals, task="text-classification", label_kind="classes", labelled=3, shape=TEACHER
):
    return CacheSpec(
        task=TASKS[task],
        label_kind=label_kind,
        signals={signal.kind: signal for signal in signals},
        shape=shape,
        labelled=labelled,
    )


def outputs(shape=STUDENT, *, rows=3, seed=0):
    """A student's outputs for three documents of 5, 1 and 3 tokens; gradients wanted."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(5) < LENGTHS[:, None]
    hidden = [
        torch.randn(3, 5, shape.hidden, generator=generator).requires_grad_()
        for _ in range(shape.layers + 1)
    ]
    logits = torch.randn(rows, shape.outputs, generator=generator).requires_grad_()
    return activations(logits=logits, hidden=hidden, mask=mask, selected=torch.tensor([1, 4, 12]))


def teacher_outputs():
    predicted = outputs(TEACHER, seed=1)
    return activations(
        logits=3 * predicted.logits.detach(),
        hidden=[layer.detach() for layer in predicted.hidden],
        mask=predicted.mask,
        selected=predicted.selected,
    )


def batch(*signals, labels=(2, -100, 0)):
    arrays = {}
    for signal in signals:
        rows = signal.encode(teacher_outputs()).items()
        arrays |= {f"{signal.kind}/{name}": values for name, values in rows}
    mask = outputs().mask.long()
    made = Batch(docs=torch.arange(3), attention_mask=mask, selected=torch.tensor([1, 4, 12]))
    made.update(labels=torch.tensor(labels), **arrays)
    made.tokens, made.labelled = 9, sum(label >= 0 for label in labels)
    return made


def loss_of(loss, *signals, student=STUDENT, labels=(2, -100, 0), **more):
    """Value and term of an objective with one loss, and the student outputs it was taken at."""
    objective = Objective({loss.kind: loss}, cache_spec(*signals, **more), student)
    predicted = outputs(student)
    total, terms = objective(predicted, batch(*signals, labels=labels))
    return total, terms[loss.kind], predicted


def divergence(teacher, student, temperature, reduction):
    """torch's own KL at a temperature, in float64; "row" is its batchmean, "element" its mean."""
    each = functional.kl_div(
        (student.double() / temperature).log_softmax(-1),
        (teacher.double() / temperature).softmax(-1),
        reduction="none",
    )
    return each.sum() / len(each) if reduction == "row" else each.mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0])
@pytest.mark.parametrize(
    ("reduction", "t_squared"),
    [("row", True), ("row", False), ("element", True), ("element", False)],
    ids=["Hinton and DistilBERT", "AD-KD", "PKD", "TinyBERT"],
)
def test_kl_follows_the_convention_of_the_paper(reduction, t_squared, temperature):
    loss = SoftKL(temperature=temperature, reduction=reduction, t_squared=t_squared)
    total, term, predicted = loss_of(loss, DenseLogits())
    expected = divergence(teacher_outputs().logits, predicted.logits, temperature, reduction)
    expected = expected * (temperature**2 if t_squared else 1)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(term, total.detach())
    total.backward()
    exact = torch.autograd.grad(expected, predicted.logits)[0]
    torch.testing.assert_close(predicted.logits.grad, exact, rtol=1e-4, atol=1e-7)


def test_kl_has_the_gradient_of_tinyberts_soft_cross_entropy():
    total, _, predicted = loss_of(SoftKL(reduction="element", t_squared=False), DenseLogits())
    target = teacher_outputs().logits.double().softmax(-1)
    soft_ce = -(target * predicted.logits.double().log_softmax(-1)).mean()
    ours, theirs = (torch.autograd.grad(x, predicted.logits)[0] for x in (total, soft_ce))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_bucket_of_a_top_k_cache_is_one_class_on_both_sides(temperature):
    signal = TopKLogits(k=3)
    loss = SoftKL(temperature=temperature)
    total, _, predicted = loss_of(loss, signal)
    soft = signal.soft(signal.encode(teacher_outputs()), 7)
    stat = soft.tail_logmass if temperature == 1 else soft.tail_stat
    p = torch.cat([soft.logprobs.double() / temperature, stat.double()[:, None]], 1)
    q = (predicted.logits.double() / temperature).log_softmax(-1)
    rest = q.scatter(1, soft.ids, -torch.inf).logsumexp(-1, keepdim=True)
    q = torch.cat([q.gather(1, soft.ids), rest], 1)
    expected = functional.kl_div(q, p.log_softmax(-1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(total.double(), expected * temperature**2, rtol=1e-4, atol=1e-6)


def test_one_pass_gives_soft_and_hard_losses_each_with_its_own_mean():
    predicted, labels = outputs(), torch.tensor([2, -100, 0])
    values = teacher_outputs().logits
    ids = torch.arange(7).expand(3, 7)
    soft = SoftLabels(ids=ids, logprobs=values.log_softmax(-1))
    total, divergences, entropies = soft_and_hard(
        predicted.logits, soft, temperature=2.0, weight=0.3, labels=labels, hard_weight=0.7
    )
    kl = 4 * divergence(values, predicted.logits, 2.0, "row")
    ce = functional.cross_entropy(predicted.logits.double(), labels)
    torch.testing.assert_close(divergences.double(), kl, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(entropies.double(), ce, rtol=1e-5, atol=1e-7)
    expected = 0.3 * kl + 0.7 * ce
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)
    ours, theirs = (torch.autograd.grad(x, predicted.logits)[0] for x in (total, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_an_objective_adds_weighted_losses_and_reports_them_unweighted():
    signals = (DenseLogits(), Hidden(layers=(0, 2, 4), dtype="fp32"))
    losses = {
        "hard": Hard(weight=0.5),
        "kl": SoftKL(weight=2.0, temperature=4.0),
        "hidden": HiddenMSE(weight=10.0),
        "logit_mse": LogitMSE(weight=0.25),
        "off": Hard(weight=0.0),
    }
    total, terms = Objective(losses, cache_spec(*signals), STUDENT)(outputs(), batch(*signals))
    assert set(terms) == {"hard", "kl", "hidden", "logit_mse"}
    assert not any(term.requires_grad for term in terms.values())
    expected = sum(losses[name].weight * term for name, term in terms.items())
    torch.testing.assert_close(total.detach(), expected)
    for name, term in terms.items():
        alone = Objective({name: losses[name]}, cache_spec(*signals), STUDENT)
        torch.testing.assert_close(alone(outputs(), batch(*signals))[1][name], term)


def test_hard_loss_without_a_label_is_zero_with_zero_gradient():
    logits = outputs().logits
    for labels in (torch.full((3,), -100), torch.full((3,), torch.nan)):
        rows = logits if not labels.is_floating_point() else logits[:, :1]
        value = hard_loss(rows, labels)
        assert value == 0
        assert not torch.autograd.grad(value, logits)[0].any()


def test_regression_leaves_out_unlabelled_rows():
    logits = outputs().logits[:, :1]
    value = hard_loss(logits, torch.tensor([1.5, torch.nan, -2.0]))
    expected = ((logits[0, 0] - 1.5) ** 2 + (logits[2, 0] + 2) ** 2) / 2
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


def test_logit_mse_is_torchs_mean_with_the_teacher_scaled():
    total, _, predicted = loss_of(LogitMSE(scale=0.5), DenseLogits())
    expected = functional.mse_loss(
        predicted.logits.double(), 0.5 * teacher_outputs().logits.double()
    )
    torch.testing.assert_close(total.double(), expected)


def pkd_reference(predicted, pairs):
    """PKD's code: F.mse_loss of unit vectors, mean over documents, layers and width."""
    taught = teacher_outputs()
    student = torch.stack([predicted.hidden[s][:, 0] for s, _ in pairs], 1).double()
    teacher = torch.stack([taught.hidden[t][:, 0] for _, t in pairs], 1).double()
    return functional.mse_loss(
        functional.normalize(student, dim=-1), functional.normalize(teacher, dim=-1)
    )


def test_hidden_cls_is_pkds_normalised_mse():
    signal = Hidden(layers=(2, 4), dtype="fp32")
    loss = HiddenMSE(layer_map="1:2,2:4", normalize="l2")
    total, _, predicted = loss_of(loss, signal)
    expected = pkd_reference(predicted, [(1, 2), (2, 4)])
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pads", ["out", "count"])
def test_hidden_of_all_tokens_is_tinyberts_sum_over_layers(pads):
    signal = Hidden(layers=(0, 2, 4), positions="all", dtype="fp32")
    loss = HiddenMSE(layer_map="uniform", positions="all", layers="sum", pads=pads)
    total, _, predicted = loss_of(loss, signal)
    taught, expected = teacher_outputs(), 0.0
    keep = predicted.mask[..., None].double()
    for student, teacher in ((0, 0), (1, 2), (2, 4)):
        error = (predicted.hidden[student].double() - taught.hidden[teacher].double()) * keep
        rows = keep.numel() if pads == "count" else keep.sum()
        expected = expected + error.square().sum() / (rows * 24)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)


def test_l2_hidden_loss_times_half_the_width_is_distilberts_cosine_loss():
    signal = Hidden(layers=(4,), positions="all", dtype="fp32")
    total, _, predicted = loss_of(HiddenMSE(layer_map="2:4", normalize="l2"), signal)
    student = predicted.hidden[2][predicted.mask].double()
    teacher = teacher_outputs().hidden[4][predicted.mask].double()
    cosine = functional.cosine_embedding_loss(student, teacher, torch.ones(9))
    torch.testing.assert_close(total.double() * 24 / 2, cosine, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("positions", ["cls", "selected"])
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_cls_and_masked_rows_are_picked_out_of_all_tokens(positions, dtype):
    loss = HiddenMSE(layer_map="2:4", positions=positions)
    values = [
        loss_of(loss, Hidden(layers=(4,), positions=stored, dtype=dtype), task="masked-lm")[0]
        for stored in ("all", positions)
    ]
    assert values[0] == values[1]
    assert values[0] > 0


@pytest.mark.parametrize("positions", ["cls", "mean", "all", "selected"])
def test_hidden_loss_compares_the_rows_the_cache_holds(positions):
    signal = Hidden(layers=(4,), positions=positions, dtype="fp32")
    total, _, predicted = loss_of(HiddenMSE(layer_map="2:4"), signal, task="masked-lm")
    taught = teacher_outputs()
    rows = [
        select(layer.double(), positions, predicted.mask, predicted.selected)
        for layer in (predicted.hidden[2], taught.hidden[4])
    ]
    torch.testing.assert_close(total.double(), functional.mse_loss(*rows), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("student", "projection", "shared", "names"),
    [
        (STUDENT, "auto", False, []),
        (STUDENT, "none", False, []),
        (STUDENT, "linear", False, ["hidden_0", "hidden_1", "hidden_2"]),
        (NARROW, "auto", False, ["hidden_0", "hidden_1", "hidden_2"]),
        (NARROW, "auto", True, ["hidden"]),
        (NARROW, "linear", True, ["hidden"]),
    ],
)
def test_projections_are_learned_where_they_are_asked_for(student, projection, shared, names):
    signal = Hidden(layers=(0, 2, 4), dtype="fp32")
    loss = HiddenMSE(projection=projection, shared_projection=shared)
    objective = Objective({"hidden": loss}, cache_spec(signal), student)
    assert list(objective.projections) == names
    total, _ = objective(outputs(student), batch(signal))
    total.backward()
    for module in objective.projections.values():
        assert module.weight.shape == (24, student.hidden)
        assert module.weight.grad.abs().sum() > 0


def test_two_losses_that_would_share_a_learned_map_by_name_are_refused():
    losses = {
        "hidden": HiddenMSE(layer_map="1:2"),
        "hidden_1": HiddenMSE(layer_map="2:4", shared_projection=True),
    }
    signal = Hidden(layers=(2, 4), dtype="fp32")
    with pytest.raises(ConfigError, match=r"hidden and losses.hidden_1 would both .* hidden_1,"):
        Objective(losses, cache_spec(signal), NARROW)
    apart = {"hidden": losses["hidden"], "more": losses["hidden_1"]}
    assert list(Objective(apart, cache_spec(signal), NARROW).projections) == ["hidden_1", "more"]


def test_only_arrays_of_mapped_layers_are_read():
    signals = (DenseLogits(), Hidden(layers=(0, 1, 2, 4), dtype="int8"))
    hidden = Objective({"h": HiddenMSE(layer_map="1:2")}, cache_spec(*signals), STUDENT)
    assert hidden.arrays == ["hidden/L2/codes", "hidden/L2/scale"]
    assert hidden.reads == hidden.taps() == [Tap("hidden", 1)]
    soft = Objective({"kl": SoftKL()}, cache_spec(*signals), STUDENT)
    assert soft.arrays == ["logits/values"]
    assert soft.taps() == [Tap("logits")]
    assert soft.taps(head=True) == [Tap("head")]
    assert Objective({"hard": Hard()}, cache_spec(*signals), STUDENT).arrays == []


def test_layer_numbers_are_not_mixed_up_with_their_prefixes():
    deep = ModelSizes(outputs=7, hidden=24, layers=12)
    signal = Hidden(layers=(1, 10, 11, 12), dtype="bf16")
    objective = Objective(
        {"h": HiddenMSE(layer_map="1:1")}, cache_spec(signal, shape=deep), STUDENT
    )
    assert objective.arrays == ["hidden/L1/codes"]


def test_hard_labels_are_off_with_a_message_where_there_are_none():
    losses = {"hard": Hard(), "kl": SoftKL()}
    objective = Objective(losses, cache_spec(DenseLogits(), labelled=0), STUDENT)
    assert list(objective.losses) == ["kl"]
    assert objective.notes == ["hard-label loss is off: the corpus has no labels"]
    assert Objective(losses, cache_spec(DenseLogits()), STUDENT).notes == []


DENSE, TOPK = DenseLogits(), TopKLogits(k=3)
CLS = Hidden(layers=(2, 3))


@pytest.mark.parametrize(
    ("losses", "known", "student", "message"),
    [
        (
            {"hard": Hard()},
            cache_spec(labelled=0),
            STUDENT,
            "hard labels alone .* no labels; choose a recipe with soft labels",
        ),
        ({"kl": SoftKL(weight=0.0)}, cache_spec(DENSE), STUDENT, "every loss .* has weight 0"),
        ({"kl": SoftKL()}, cache_spec(CLS), STUDENT, r"the cache holds hidden \(layers=2-3"),
        ({"kl": SoftKL()}, cache_spec(), STUDENT, "the cache holds no signals"),
        (
            {"kl": SoftKL()},
            cache_spec(DENSE, label_kind="regression"),
            STUDENT,
            "use the loss logit_mse",
        ),
        (
            {"kl": SoftKL(temperature=4.0)},
            cache_spec(TOPK),
            STUDENT,
            "temperatures 1 and 2. Set losses.kl.temperature to 1 or 2, or losses.kl.tail=renorm",
        ),
        (
            {"kl": SoftKL(temperature=3.0, tail="truncate")},
            cache_spec(TOPK),
            STUDENT,
            "temperature 3 with tail=truncate",
        ),
        (
            {"logit_mse": LogitMSE()},
            cache_spec(TOPK),
            STUDENT,
            r"needs raw logits .* the cache holds logits \(codec=topk, k=3\): use the loss kl",
        ),
        (
            {"kl": SoftKL()},
            cache_spec(DENSE),
            ModelSizes(outputs=9, hidden=24, layers=2),
            "the student has 9 and the cached teacher 7",
        ),
        (
            {"hard": Hard()},
            cache_spec(DENSE),
            ModelSizes(outputs=3, hidden=24, layers=2),
            "labels go up to 6; the student has 3 outputs",
        ),
        ({"hidden": HiddenMSE()}, cache_spec(DENSE), STUDENT, r"the cache holds logits \("),
        (
            {"h": HiddenMSE(layer_map="uniform")},
            cache_spec(CLS),
            STUDENT,
            r"0-2-4; the cache holds layers 2-3 \(lacking 0-4\): set losses\.h\.layer_map=\d",
        ),
        (
            {"h": HiddenMSE(layer_map="1:2", positions="all")},
            cache_spec(CLS),
            STUDENT,
            "needs hidden states at positions=all; the cache holds positions=cls",
        ),
        (
            {"h": HiddenMSE(layer_map="1:2", positions="mean")},
            cache_spec(CLS),
            STUDENT,
            "holds positions=cls: set losses.h.positions=cache",
        ),
        (
            {"h": HiddenMSE(layer_map="1:2", projection="none")},
            cache_spec(CLS),
            NARROW,
            "width is 10, the cached teacher's 24; set losses.h.projection=linear",
        ),
        (
            {"h": HiddenMSE(layer_map="1:2", positions="selected")},
            cache_spec(Hidden(layers=(2,), positions="all")),
            STUDENT,
            "losses.h: positions=selected needs a task that selects tokens",
        ),
        ({"h": HiddenMSE(layer_map="1:5")}, cache_spec(CLS), STUDENT, "needs teacher layer 5"),
    ],
)
def test_what_cannot_be_served_is_refused_naming_what_is_there(losses, known, student, message):
    with pytest.raises(ConfigError, match=message):
        Objective(losses, known, student)


def test_a_renormalised_top_k_takes_any_temperature():
    total, _, predicted = loss_of(SoftKL(temperature=7.0, tail="renormalize"), TOPK)
    soft = TOPK.soft(TOPK.encode(teacher_outputs()), 7)
    p = (soft.logprobs.double() / 7).log_softmax(-1)
    q = (predicted.logits.double() / 7).log_softmax(-1).gather(1, soft.ids)
    expected = 49 * functional.kl_div(q, p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(total.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_top_k_cache_of_all_classes_takes_any_temperature():
    total, _, predicted = loss_of(SoftKL(temperature=5.0), TopKLogits(k=7))
    expected = 25 * divergence(teacher_outputs().logits, predicted.logits, 5.0, "row")
    torch.testing.assert_close(total.double(), expected, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", ["pkd-skip", "pkd-last"])
def test_pkd_recipes_are_the_papers_objective(name):
    signals = (DENSE, Hidden(layers=(1, 2, 3, 4), dtype="fp32"))
    objective = Objective(load_recipe(name).losses, cache_spec(*signals), STUDENT)
    predicted, labels = outputs(), (2, 1, 0)
    total, _ = objective(predicted, batch(*signals, labels=labels))
    ce = functional.cross_entropy(predicted.logits.double(), torch.tensor(labels))
    soft = 100 * divergence(teacher_outputs().logits, predicted.logits, 10.0, "element")
    teacher_layer = {"pkd-skip": 2, "pkd-last": 3}[name]
    expected = 0.5 * ce + 0.5 * soft + 100 * pkd_reference(predicted, [(1, teacher_layer)])
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)


def test_rows_count_for_what_their_documents_weigh_and_no_device_is_asked_for_the_sum():
    made = batch(DenseLogits())
    made["example_weight"], made["odd/kept"] = (
        torch.tensor([2.0, 0.0, 1.5]),
        torch.tensor([0, 5, 8]),
    )
    token = [2.0] * 5 + [0.0] + [1.5] * 3
    for rows, wanted in (
        (Rows("document"), [2.0, 0.0, 1.5]),
        (Rows("token"), token),
        (Rows("selected"), [2.0, 2.0, 1.5]),
        (Rows("token", sampled_rows="odd/kept"), [2.0, 0.0, 1.5]),
        (Rows("document", labelled=True), [2.0, 0.0, 1.5]),
    ):
        total = made.total(rows)
        assert total == sum(wanted)
        found = made.row_weights(rows, total, torch.float64)
        torch.testing.assert_close(found * total, torch.tensor(wanted).double())
        assert made.to("meta").to("meta").total(rows) == total
    assert made.total(Rows("token", padded=True)) == 5 * 3.5
    made.idle = True
    assert made.total(Rows("token")) == 0
    assert not made.row_weights(Rows("token"), 3.0, torch.float32).any()


@pytest.mark.parametrize("logits", [DenseLogits(), TopKLogits(k=3)], ids=lambda s: s.codec)
def test_no_number_of_a_step_is_asked_of_the_device(logits):
    """On a device that has none: whoever asks raises."""
    signals = (logits, Hidden(layers=(0, 2, 4), positions="all"))
    losses = {"kl": SoftKL(), "hard": Hard(), "hidden": HiddenMSE(positions="cls")}
    losses |= {"logit_mse": LogitMSE()} if logits.codec == "dense" else {}
    made = batch(*signals)
    made["example_weight"] = torch.tensor([2.0, 0.0, 1.0])
    nowhere = [
        x.detach().to("meta").requires_grad_() for x in (outputs().logits, *outputs().hidden)
    ]
    predicted = activations(
        logits=nowhere[0], hidden=nowhere[1:], mask=outputs().mask.to("meta"), selected=None
    )
    total, terms = Objective(losses, cache_spec(*signals), STUDENT)(predicted, made.to("meta"))
    assert terms.keys() == losses.keys()
    total.backward()
    assert all(x.grad is not None for x in nowhere)


def test_a_loss_names_the_signal_it_learns_from_or_takes_the_one_that_has_its_layer():
    signals = {
        "early": Hidden(layers=(1, 2), dtype="fp32"),
        "late": Hidden(layers=(2, 4), positions="all", dtype="fp32"),
    }
    held = CacheSpec(
        task=TASKS["text-classification"],
        label_kind="classes",
        signals=signals,
        shape=TEACHER,
        labelled=3,
    )
    both = HiddenMSE(layer_map="1:1,2:4", positions="cls")
    aim = Objective({"both": both}, held, STUDENT)
    assert aim.arrays == ["early/L1/codes", "late/L4/codes"]
    for name, layer_map in (("early", "1:2"), ("late", "1:2"), ("late", "1:4")):
        named = HiddenMSE(layer_map=layer_map, signal=name)
        aim = Objective({"one": named}, held, STUDENT)
        assert aim.arrays == [f"{name}/L{layer_map[-1]}/codes"]
    for loss, message in (
        (
            HiddenMSE(layer_map="1:4", signal="early"),
            "teacher layers 4; the cache holds layers 1-2",
        ),
        (
            HiddenMSE(layer_map="1:4", signal="soft"),
            "needs hidden states under the name soft; .* --signal soft=hidden:layers=4,positions=",
        ),
        (
            SoftKL(signal="early"),
            "needs soft labels under the name early; .* early=logits:dense or",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            Objective({"one": loss}, held, STUDENT)
