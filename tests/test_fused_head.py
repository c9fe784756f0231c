"""Language-model students train through their heads: the same loss and gradients, no logits."""

import copy
import json
from contextlib import contextmanager

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from kdcache.building.builder import build
from kdcache.losses import CacheSpec, Hard, HiddenMSE, SoftKL
from kdcache.models import plain_head, run
from kdcache.progress import quiet
from kdcache.signals import LOGITS, ModelSizes
from kdcache.training.objective import Objective
from kdcache.training.train import train
from tests.activations import say
from tests.process_groups import process_group

WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES = {**WIDE, "intermediate_size": 48, "max_position_embeddings": 130}
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 130}

MASKED = {
    "bert": (transformers.BertConfig, SIZES),
    "roberta": (transformers.RobertaConfig, SIZES),
    "distilbert": (transformers.DistilBertConfig, DISTIL),
    "albert": (transformers.AlbertConfig, {**SIZES, "embedding_size": 16}),
    "electra": (transformers.ElectraConfig, {**SIZES, "embedding_size": 16}),
    "deberta": (transformers.DebertaV2Config, SIZES),
    "modernbert": (transformers.ModernBertConfig, SIZES),
}
CAUSAL = {
    "gpt2": (transformers.GPT2Config, GPT2),
    "llama": (transformers.LlamaConfig, DECODER),
    "tied llama": (transformers.LlamaConfig, {**DECODER, "tie_word_embeddings": True}),
    "qwen": (transformers.Qwen2Config, DECODER),
    "neox": (transformers.GPTNeoXConfig, SIZES),
    "phi": (transformers.PhiConfig, SIZES),
}
OTHERS = {
    "capped": (transformers.Gemma2Config, {**DECODER, "final_logit_softcapping": 5.0}),
    "scaled": (transformers.CohereConfig, {**DECODER, "logit_scale": 0.25}),
    "divided": (transformers.GraniteConfig, {**DECODER, "logits_scaling": 8.0}),
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
ALL = [("masked-lm", name) for name in MASKED] + [("causal-lm", name) for name in CAUSAL]


def made(task, kind, vocab=600, seed=0):
    config, sizes = (MASKED if task == "masked-lm" else CAUSAL | OTHERS)[kind]
    auto = {
        "masked-lm": transformers.AutoModelForMaskedLM,
        "causal-lm": transformers.AutoModelForCausalLM,
    }[task]
    torch.manual_seed(seed)
    model = auto.from_config(
        config(vocab_size=vocab, initializer_range=0.2, **SPECIAL, **sizes),
        attn_implementation="eager",
    )
    return model.eval()


@pytest.fixture(params=["masked-lm", "causal-lm"])
def task(request):
    return request.param


@pytest.fixture
def cached(task, masked_cache, causal_cache):
    return masked_cache if task == "masked-lm" else causal_cache


def objective(cache, losses, layers=2):
    shape = ModelSizes(outputs=cache.shape.outputs, hidden=32, layers=layers)
    torch.manual_seed(1)
    config = cache.plan.config
    known = CacheSpec(
        task=cache.plan.task,
        label_kind=config.label_kind,
        signals=cache.signals,
        shape=cache.shape,
        labelled=cache.plan.labelled,
    )
    return Objective(losses, known, shape)


def step(model, task, batch, aim, head, scale=1.0):
    """Loss, terms and every gradient of one step, with the head left to the losses or not."""
    model.zero_grad(set_to_none=True)
    aim.projections.zero_grad(set_to_none=True)
    taps = aim.taps(head=head is not None)
    loss, terms = aim(run(model, batch, taps, task=task), batch)
    (scale * loss).backward()
    named = [*model.named_parameters(), *aim.projections.named_parameters()]
    grads = {name: p.grad.clone() for name, p in named if p.grad is not None}
    return loss.detach(), terms, grads


def assert_same(fused, plain, rtol=1e-6):
    assert abs(fused[0] - plain[0]) <= rtol * abs(plain[0])
    assert fused[1].keys() == plain[1].keys()
    for name, term in plain[1].items():
        assert abs(fused[1][name] - term) <= rtol * abs(term)
    assert fused[2].keys() == plain[2].keys()
    largest = max(gradient.abs().max() for gradient in plain[2].values())
    for name, gradient in plain[2].items():  # some are nothing but rounding: a key's bias
        error = (fused[2][name] - gradient).abs().max()
        assert error <= 1e-5 * gradient.abs().max() + 1e-6 * largest, name


LOSSES = {
    "soft": {"kl": SoftKL(temperature=2.0)},
    "soft and hard": {"kl": SoftKL(weight=0.7), "hard": Hard(weight=0.3)},
    "two soft": {"kl": SoftKL(), "warm": SoftKL(temperature=2.0, reduction="element")},
    "hard": {"hard": Hard()},
}


@pytest.mark.parametrize("losses", LOSSES)
def test_loss_and_gradients_equal_those_through_logits(losses, task, cached):
    model = made(task, "bert" if task == "masked-lm" else "gpt2", cached.shape.outputs)
    aim = objective(cached, LOSSES[losses])
    batch = cached.batch(cached.plan.docs[:5], aim.arrays)
    head = plain_head(model, batch)
    assert head is model.get_output_embeddings()
    assert_same(*(step(model, task, batch, aim, each) for each in (head, None)))


@pytest.mark.parametrize(("task", "kind"), ALL, ids=[name for _, name in ALL])
def test_heads_of_many_architectures_are_found(kind, task, cached):
    model = made(task, kind, cached.shape.outputs)
    aim = objective(cached, LOSSES["soft and hard"])
    batch = cached.batch(cached.plan.docs[:3], aim.arrays)
    head = plain_head(model, batch)
    assert head is model.get_output_embeddings()
    assert_same(*(step(model, task, batch, aim, each) for each in (head, None)), rtol=3e-6)


@pytest.mark.parametrize("kind", OTHERS)
def test_logits_that_are_changed_after_the_head_are_made_whole(kind, causal_cache):
    model = made("causal-lm", kind, causal_cache.shape.outputs)
    assert plain_head(model, causal_cache.batch(causal_cache.plan.docs[:1], [])) is None


def test_a_weight_used_elsewhere_is_no_head(masked_cache):
    """MobileBERT multiplies by it together with another matrix."""
    sizes = {**WIDE, "embedding_size": 16, "intra_bottleneck_size": 32, "intermediate_size": 48}
    vocab = masked_cache.shape.outputs
    model = transformers.MobileBertForMaskedLM(
        transformers.MobileBertConfig(vocab_size=vocab, **sizes)
    )
    assert plain_head(model, masked_cache.batch(masked_cache.plan.docs[:1], [])) is None


def test_looking_for_the_head_leaves_no_trace(masked_cache):
    model = made("masked-lm", "bert", masked_cache.shape.outputs).train()
    model.bert.encoder.eval()
    modes = [module.training for module in model.modules()]
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    plain_head(model, masked_cache.batch(masked_cache.plan.docs[:1], []))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_logits_are_only_a_shape_and_the_model_is_itself_again(task, cached):
    model = made(task, "bert" if task == "masked-lm" else "gpt2", cached.shape.outputs)
    batch = cached.batch(cached.plan.docs[:3], [])
    want = say(model, task, batch, hidden=False).logits
    head = plain_head(model, batch)
    outputs = say(model, task, batch, hidden=False, head=head)
    assert LOGITS not in outputs.values
    assert outputs.logits_or_head is outputs.head
    assert outputs.head.shape == want.shape
    made_whole = outputs.head.hidden @ head.weight.t()
    made_whole = made_whole if head.bias is None else made_whole + head.bias
    torch.testing.assert_close(made_whole, want)
    assert "forward" not in vars(head)
    assert torch.equal(say(model, task, batch, hidden=False).logits, want)


def test_a_head_is_given_back_when_the_model_fails(masked_cache):
    model = made("masked-lm", "bert", masked_cache.shape.outputs)
    batch = masked_cache.batch(masked_cache.plan.docs[:3], [])
    head = plain_head(model, batch)
    batch["input_ids"] = batch["input_ids"] + 10**6
    with pytest.raises(IndexError):
        say(model, "masked-lm", batch, hidden=False, head=head)
    assert "forward" not in vars(head)


def test_hidden_losses_go_beside_a_fused_one(task, cached):
    pairs = "1:2,2:4" if task == "masked-lm" else "0:0,2:4"
    losses = {**LOSSES["soft and hard"], "hidden": HiddenMSE(layer_map=pairs, projection="linear")}
    model = made(task, "bert" if task == "masked-lm" else "gpt2", cached.shape.outputs)
    aim = objective(cached, losses)
    batch = cached.batch(cached.plan.docs[:4], aim.arrays)
    head = plain_head(model, batch)
    assert_same(*(step(model, task, batch, aim, each) for each in (head, None)))


def test_a_batch_without_masked_positions_has_zero_gradients(masked_cache):
    model = made("masked-lm", "bert", masked_cache.shape.outputs)
    aim = objective(masked_cache, LOSSES["soft and hard"])
    batch = masked_cache.batch(masked_cache.plan.docs[:2], aim.arrays)
    head = plain_head(model, batch)
    for name in ("selected", "labels", *aim.arrays):
        batch[name] = batch[name][:0]
    loss, terms, gradients = step(model, "masked-lm", batch, aim, head)
    assert loss == terms["kl"] == terms["hard"] == 0
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(gradients)
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_head_runs_in_the_autocast_of_the_model(dtype, task, cached):
    """Which may be over by the time the loss is computed."""
    model = made(task, "bert" if task == "masked-lm" else "gpt2", cached.shape.outputs)
    aim = objective(cached, LOSSES["soft"])
    batch = cached.batch(cached.plan.docs[:4], aim.arrays)
    head = plain_head(model, batch)
    with torch.autocast("cpu", dtype):
        outputs = say(model, task, batch, hidden=False, head=head)
        want = say(model, task, batch, hidden=False)
    assert outputs.head.autocast == dtype
    loss, wanted = aim(outputs, batch)[0], aim(want, batch)[0]
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=2e-2, atol=0)
    assert head.weight.grad.dtype == torch.float32


def test_under_ddp_every_parameter_gets_its_gradient_once(tmp_path, task, cached):
    model = made(task, "bert" if task == "masked-lm" else "gpt2", cached.shape.outputs)
    aim = objective(cached, LOSSES["soft and hard"])
    batch = cached.batch(cached.plan.docs[:4], aim.arrays)
    head = plain_head(model, batch)
    plain = step(model, task, batch, aim, None)

    def check(spread):
        for _ in range(2):  # a parameter that is not ready fails in the second step
            loss, terms, gradients = step(spread, task, batch, aim, head)
            gradients = {name.removeprefix("module."): x for name, x in gradients.items()}
            assert_same((loss, terms, gradients), plain)

    with process_group(tmp_path):
        check(DistributedDataParallel(model))


class Recorder:
    """A Progress that remembers what it was told."""

    def __init__(self):
        self.messages = []

    def bar(self, label, *, unit, total):
        return quiet.bar(label, unit=unit, total=total)

    def say(self, message):
        self.messages.append(message)


@pytest.fixture(scope="module")
def dense(tmp_path_factory, prose_file, masked_lm, causal_lm):
    """A cache of each task with all logits, which serves losses of every kind."""
    folder = tmp_path_factory.mktemp("dense")
    return {
        task: build(
            prose_file,
            teacher=teacher,
            task=task,
            out=folder / f"{task}.zarr",
            signals=["logits:dense"],
            max_length=32,
            limit=16,
        )
        for task, teacher in (("masked-lm", masked_lm), ("causal-lm", causal_lm))
    }


def losses_of(result):
    entries = json.loads((result.folder / "training_log.json").read_text("utf-8"))
    return [entry["loss"] for entry in entries if "loss" in entry]


OLD_OR_NEW = "activation_checkpointing", "gradient_checkpointing"
CHECKPOINTING = [f for f in OLD_OR_NEW if f in transformers.TrainingArguments.__dataclass_fields__]


@pytest.mark.parametrize(
    "more",
    [
        "gradient_accumulation_steps=2",
        pytest.param(f"{CHECKPOINTING[0]}=true", marks=pytest.mark.slow),
    ],
)
def test_training_through_the_head_takes_the_steps_of_training_through_logits(
    more, task, dense, tmp_path
):
    """A second loss, of next to no weight, needs the logits whole, which the run says."""
    kind = "bert" if task == "masked-lm" else "gpt2"
    made(task, kind, dense[task].shape.outputs).config.save_pretrained(tmp_path / "student")
    options = [
        "training.max_steps=3",
        "training.logging_steps=1",
        "training.learning_rate=1e-3",
        "training.per_device_train_batch_size=4",
        f"training.{more}",
    ]
    fused, plain = Recorder(), Recorder()
    runs = [
        train(
            dense[task],
            recipe="mlm-kd" if task == "masked-lm" else "causal-kd",
            out=tmp_path / name,
            config=str(tmp_path / "student"),
            overrides=[*options, *others],
            progress=progress,
        )
        for name, progress, others in (
            ("fused", fused, []),
            ("plain", plain, ["losses.logit_mse.weight=1e-30"]),
        )
    ]
    assert not [m for m in fused.messages if "logits" in m]
    assert [m for m in plain.messages if "made whole: a loss compares them one by one" in m]
    assert losses_of(runs[0]) == pytest.approx(losses_of(runs[1]), rel=1e-5)
    assert len(losses_of(runs[0])) == 3


def test_a_student_whose_logits_are_scaled_says_that_they_are_made_whole(dense, tmp_path):
    vocab = dense["causal-lm"].shape.outputs
    made("causal-lm", "scaled", vocab).config.save_pretrained(tmp_path / "student")
    progress = Recorder()
    train(
        dense["causal-lm"],
        recipe="causal-kd",
        out=tmp_path / "run",
        config=str(tmp_path / "student"),
        overrides=["training.max_steps=1"],
        progress=progress,
    )
    assert [
        m for m in progress.messages if "made whole: they are not just what a linear layer" in m
    ]


@pytest.mark.parametrize(
    "task", ["masked-lm", pytest.param("causal-lm", marks=pytest.mark.slow)], indirect=True
)
def test_a_resumed_run_through_the_head_equals_the_unbroken_one(task, cached, tmp_path):
    """With dropout, and soft and hard losses in one pass."""
    kind = "bert" if task == "masked-lm" else "gpt2"
    made(task, kind, cached.shape.outputs).config.save_pretrained(tmp_path / "student")
    overrides = [
        "training.max_steps=5",
        "training.learning_rate=1e-3",
        "training.per_device_train_batch_size=4",
        "training.save_strategy=steps",
        "training.save_steps=3",
    ]

    def run(name, **options):
        return train(
            cached,
            recipe="mlm-kd" if task == "masked-lm" else "causal-kd",
            out=tmp_path / name,
            config=str(tmp_path / "student"),
            overrides=overrides,
            **options,
        )

    class Breaking(Recorder):
        @contextmanager
        def bar(self, label, *, unit, total):
            done = []

            def advance(count):
                done.append(count)
                if label.startswith("training") and sum(done) == 4:
                    raise RuntimeError("stopped")

            yield advance

    whole = run("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        run("broken", progress=Breaking())
    resumed = run("broken", resume=True)
    one, other = (load_file(each.folder / "model.safetensors") for each in (whole, resumed))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
