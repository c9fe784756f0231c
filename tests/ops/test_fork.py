"""A forked child computes what its parent did, whether or not the parent's threads were at work."""

import os
import subprocess
import sys

import pytest

CODE = """
import itertools, multiprocessing, os, signal, sys
import torch
import kdcache_kernels as k

# Where a process answers SIGTERM itself, Numba's launch in a child returns with nothing computed.
signal.signal(signal.SIGTERM, lambda *_: None)
draw = torch.Generator().manual_seed(0)
x, head, best = (torch.randn(size, generator=draw) for size in ((60, 5000), (5000, 64), (60, 64)))
teacher = torch.randn(60, 5000, generator=draw).log_softmax(1)
support = teacher.topk(9)
soft = support.indices, support.values
labels = torch.arange(60)


def with_gradient(loss, *leaves):
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


OPS = {
    "topk_kl": lambda: with_gradient(
        lambda s: k.topk_kl(s, *soft, tail="truncate", labels=labels, hard_weight=0.5), x),
    "linear_kl": lambda: with_gradient(
        lambda s, w: k.linear_kl(s, w, best + 1, head, labels=labels, hard_weight=0.5), best, head),
    "linear_topk_kl": lambda: with_gradient(
        lambda s, w: k.linear_topk_kl(s, w, None, *soft, tail="renormalize"), best, head),
    "hidden_mse": lambda: with_gradient(lambda s: k.hidden_mse(s, teacher, normalize="l2"), x),
    "relation_kl": lambda: with_gradient(
        lambda s: k.relation_kl(s, teacher, torch.tensor([40, len(x) - 40]), heads=1), x),
    "layer_costs": lambda: with_gradient(lambda s: k.layer_costs([s], [teacher]).sum(), x),
    "pair_distances": lambda: with_gradient(lambda s: k.pair_distances(s, teacher), x),
    "attention_mse": lambda: with_gradient(
        lambda s: k.attention_mse(s, teacher, torch.tensor([40, len(x) - 40]), heads=1), x),
    "topk_encode": lambda: k.topk_encode(x, 12),
    "quantize_rows": lambda: k.quantize_rows(x, 50),
}
assert {*OPS, *(f"{op}_rows" for op in OPS), "dequantize_rows", "empty_cache"} >= {*k.__all__}


def wrong(used):
    "Names of the ops whose results here are not those of the parent."
    return [n for n in used if not all(map(torch.equal, OPS[n](), used[n]))]


class Results(torch.utils.data.Dataset):
    def __init__(self, used):
        self.used = used

    def __len__(self):
        return 2 * len(self.used)

    def __getitem__(self, i):
        name = [*self.used][i % len(self.used)]
        return wrong({name: self.used[name]})


def forked(used):
    child = os.fork()
    if child == 0:
        mine = wrong(used)
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(len(wrong(used)))
        os._exit(len(mine) + (os.waitpid(grandchild, 0)[1] != 0))
    return os.waitpid(child, 0)[1]


def child_process(used, queue):
    queue.put(wrong(used))


def in_a_process(used):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child_process, args=(used, queue))
    process.start()
    found = queue.get(timeout=200)
    process.join()
    return found


def in_workers(used):
    loader = torch.utils.data.DataLoader(
        Results(used), batch_size=None, num_workers=2, multiprocessing_context="fork")
    return [*itertools.chain(*loader)]


def first():
    "The child is the first to use them, after torch has used threads of its own."
    (x @ head).sum()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        used = {name: op() for name, op in OPS.items()}
        finite = all(t.float().isfinite().all() for out in used.values() for t in out)
        os._exit(0 if finite and not wrong(used) else 1)
    return os.waitpid(child, 0)[1]


OPS = {name: OPS[name] for name in sys.argv[1:] or OPS}
found = [first()]
used = {name: op() for name, op in OPS.items()}
print(*found, forked(used), in_a_process(used), in_workers(used), wrong(used))
"""


@pytest.mark.parametrize(
    ("threads", "ops"),
    [
        (2, ["quantize_rows"]),  # all of them take several processes long
        pytest.param(2, [], marks=pytest.mark.slow, id="2-all"),
        pytest.param(1, [], marks=pytest.mark.slow, id="1-all"),
    ],
)
def test_every_op_gives_a_forked_child_the_parents_results(threads: int, ops: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-W", "ignore", "-c", CODE, *ops]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert (done.returncode, done.stdout.strip()) == (0, "0 0 [] [] []"), done.stderr
