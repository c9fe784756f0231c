"""The store: plans and caches as Zarr v3 groups with checked, whole, committed shards."""

from kdcache.store.claims import Claims
from kdcache.store.copying import copy
from kdcache.store.create import (
    cache_record,
    create,
    plan_layouts,
    plan_record,
    signal_layouts,
    write_plan,
)
from kdcache.store.merging import merge
from kdcache.store.objects import Place, Root, locate
from kdcache.store.reader import Cache, open_cache, open_plan
from kdcache.store.shard import Layout
from kdcache.store.transfer import Transfer
from kdcache.store.verify import verify
from kdcache.store.writer import Writer

__all__ = [
    "Cache",
    "Claims",
    "Layout",
    "Place",
    "Root",
    "Transfer",
    "Writer",
    "cache_record",
    "copy",
    "create",
    "locate",
    "merge",
    "open_cache",
    "open_plan",
    "plan_layouts",
    "plan_record",
    "signal_layouts",
    "verify",
    "write_plan",
]
