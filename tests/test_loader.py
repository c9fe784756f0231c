"""The order of documents, and what a batch read from a cache holds."""

import threading
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches

from kdcache.errors import DamageError
from kdcache.plans.batch import Batch
from kdcache.training.documents import CachedDocuments, document_order
from kdcache.training.loader import make_loader

LENGTHS = np.random.default_rng(0).integers(3, 60, 237)


def batches(order, size):
    return [order[i : i + size].tolist() for i in range(0, len(order), size)]


def padding(order, size):
    return sum(int((max(LENGTHS[b]) - LENGTHS[b]).sum()) for b in batches(order, size))


@pytest.mark.parametrize("window", [0, 1, 4, 50])
def test_an_epoch_is_a_permutation_fixed_by_seed_and_epoch(window):
    def order(seed, epoch):
        return document_order(237, seed=seed, epoch=epoch, batch=8, lengths=LENGTHS, window=window)

    assert sorted(order(0, 0)) == list(range(237))
    assert (order(0, 0) == order(0, 0)).all()
    assert (order(0, 0) != order(0, 1)).any()
    assert (order(0, 0) != order(1, 0)).any()


def test_the_order_leaves_numpys_and_torchs_generators_alone():
    np.random.seed(3)  # noqa: NPY002 - the state that must not change
    torch.manual_seed(3)
    before = (np.random.get_state()[1].copy(), torch.get_rng_state())  # noqa: NPY002 - as above
    document_order(237, seed=0, epoch=0, batch=8, lengths=LENGTHS, window=4)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002 - as above
    assert torch.equal(torch.get_rng_state(), before[1])


def test_grouping_by_length_saves_padding_and_keeps_the_short_batch_last():
    plain = document_order(237, seed=0, epoch=0)
    grouped = document_order(237, seed=0, epoch=0, batch=8, lengths=LENGTHS, window=10)
    assert padding(grouped, 8) < 0.35 * padding(plain, 8)
    assert len(batches(grouped, 8)[-1]) == 237 % 8
    means = [LENGTHS[b].mean() for b in batches(grouped, 8)]
    assert means != sorted(means, reverse=True)


def test_grouping_keeps_documents_within_their_window():
    plain = document_order(237, seed=0, epoch=0)
    grouped = document_order(237, seed=0, epoch=0, batch=8, lengths=LENGTHS, window=5)
    window = {doc: place // 40 for place, doc in enumerate(plain)}
    assert all(len({window[doc] for doc in batch}) == 1 for batch in batches(grouped, 8))


def dataset(cache, arrays=(), **options):
    return CachedDocuments(cache, arrays, seed=5, **options)


def docs_of(loader):
    return [batch["docs"].tolist() for batch in loader]


def test_a_batch_holds_the_arrays_asked_for_and_no_others(cache):
    loader = make_loader(dataset(cache, ["hidden/L2/codes"]), batch_size=16)
    batch = next(iter(loader))
    assert {n for n in batch if "/" in n} == {"hidden/L2/codes"}
    docs = batch["docs"].numpy()
    assert np.array_equal(batch["hidden/L2/codes"], cache.read("hidden/L2/codes", docs))
    assert torch.equal(batch["labels"], torch.from_numpy(cache.batch(docs)["labels"].numpy()))


def test_an_epoch_of_batches_holds_every_document_once(cache):
    data = dataset(cache, batch=16, window=3)
    loader = make_loader(data, batch_size=16)
    seen = [doc for docs in docs_of(loader) for doc in docs]
    assert sorted(seen) == cache.plan.docs.tolist()
    assert len(loader) == len(docs_of(loader))


def test_set_epoch_on_sampler_or_data_set_changes_the_order(cache):
    data = dataset(cache)
    loader = make_loader(data, batch_size=16)
    first = docs_of(loader)
    loader.batch_sampler.sampler.set_epoch(1)
    second = docs_of(loader)
    data.set_epoch(0)
    assert docs_of(loader) == first != second


def reading():
    return [t for t in threading.enumerate() if t.name == "kdcache-loader"]


class Watched(CachedDocuments):
    """Notes the thread of every reading, and fails at the batches in `failing`."""

    def __init__(self, *args, failing=(), **options):
        super().__init__(*args, seed=5, **options)
        self.failing, self.threads, self.most = failing, [], 0

    def read(self, docs):
        self.threads.append(threading.current_thread())
        self.most = max(self.most, len(reading()))
        if len(self.threads) - 1 in self.failing:
            raise DamageError(f"batch {len(self.threads) - 1} is damaged")
        return super().read(docs)


def prepared(loader):
    """The loader as accelerate makes it for training."""
    return DataLoaderShard(
        loader.dataset,
        device=torch.device("cpu"),
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
    )


@pytest.mark.parametrize("wrap", [lambda loader: loader, prepared], ids=["own", "accelerate"])
def test_one_thread_reads_the_next_batch_while_one_is_used(cache, wrap):
    data = Watched(cache, ["logits/values"])
    loader = wrap(make_loader(data, batch_size=16))
    plain = dataset(cache, ["logits/values"])
    plain.ahead = False
    alone = make_loader(plain, batch_size=16)
    for number, (batch, wanted) in enumerate(zip(loader, alone, strict=True)):
        for name, tensor in wanted.items():
            assert torch.equal(batch[name], tensor), name
        for thread in reading():
            thread.join()
        assert len(data.threads) == min(number + 2, len(loader))
    assert data.most == 1
    assert threading.main_thread() not in data.threads
    assert reading() == []


@pytest.mark.parametrize("wrap", [lambda loader: loader, prepared], ids=["own", "accelerate"])
def test_what_goes_wrong_in_the_thread_reaches_the_loop_unchanged(cache, wrap):
    seen = []
    loader = wrap(make_loader(Watched(cache, [], failing=[3]), batch_size=16))
    with pytest.raises(DamageError, match=r"^batch 3 is damaged$") as caught:
        seen.extend(loader)
    assert type(caught.value) is DamageError
    assert len(seen) == 3
    assert reading() == []


def test_a_dropped_iterator_leaves_no_thread(cache):
    batches = iter(make_loader(Watched(cache, []), batch_size=16))
    next(batches)
    batches.close()
    assert reading() == []


def test_a_data_set_may_ask_to_be_read_in_the_loop_itself(cache):
    data = Watched(cache, [])
    data.ahead = False
    assert all(isinstance(batch, Batch) for batch in make_loader(data, batch_size=16))
    assert set(data.threads) == {threading.main_thread()}


def test_reading_draws_nothing_from_torchs_generator(cache):
    before = torch.get_rng_state()
    docs_of(make_loader(dataset(cache), batch_size=16))
    assert torch.equal(torch.get_rng_state(), before)


def test_skipped_batches_leave_the_rest_as_it_was(cache):
    loader = make_loader(dataset(cache, batch=16, window=3), batch_size=16)
    assert docs_of(skip_first_batches(loader, 4)) == docs_of(loader)[4:]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_global_batches(cache, ranks):
    loader = make_loader(dataset(cache, batch=24, window=3), batch_size=24 // ranks)
    shards = [
        list(BatchSamplerShard(loader.batch_sampler, num_processes=ranks, process_index=rank))
        for rank in range(ranks)
    ]
    steps = [sorted(chain.from_iterable(parts)) for parts in zip(*shards, strict=True)]
    whole = make_loader(dataset(cache, batch=24, window=3), batch_size=24)
    full = len(cache.plan.docs) // 24
    assert steps[:full] == [sorted(batch) for batch in whole.batch_sampler][:full]


@pytest.mark.parametrize("count", [48, 49, 55, 61])
@pytest.mark.parametrize(("ranks", "size"), [(1, 24), (1, 8), (2, 12), (2, 4), (3, 8), (3, 4)])
def test_ranks_have_equal_turns_and_every_document_once(cache, count, ranks, size):
    """Steps of 24, cut for so many ranks: the same documents a step, none of them twice."""
    data = dataset(cache, batch=24, docs=cache.plan.docs[:count])
    turns = 24 // (ranks * size)
    dealt = [
        list(make_loader(data, batch_size=size, ranks=ranks, rank=rank).batch_sampler)
        for rank in range(ranks)
    ]
    assert len({len(batches) for batches in dealt}) == 1
    assert -(-len(dealt[0]) // turns) == -(-count // 24)
    for step in range(-(-count // 24)):
        docs = [
            d for batches in dealt for b in batches[step * turns : (step + 1) * turns] for d in b
        ]
        assert sorted(docs) == sorted(data.order[step * 24 : (step + 1) * 24])
    full = make_loader(data, batch_size=size, ranks=ranks, rank=0, drop_last=True).batch_sampler
    assert len(full) == len(list(full)) == count // 24 * turns
    assert all(len(batch) == size for batch in full)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_turn_without_documents_is_an_idle_batch(cache, ahead):
    data = dataset(cache, batch=2, docs=cache.plan.docs[:3])
    data.ahead = ahead
    first, idle = make_loader(data, batch_size=1, ranks=2, rank=0)
    assert (first.idle, idle.idle) == (False, True)
    assert idle["docs"].tolist() == [cache.plan.docs[0]]
    moved = idle.to("cpu")
    assert (moved.idle, moved.tokens, moved.labelled) == (True, idle.tokens, 1)
    assert first.tokens == int(first["attention_mask"].sum())
