"""The store: plans and caches as Zarr v3 groups with checked, whole, committed shards."""

from kdcache.store.cache import Cache, open_cache
from kdcache.store.commits.claims import Claims
from kdcache.store.commits.writer import Writer
from kdcache.store.create import create, write_plan
from kdcache.store.format.array_reader import Layout
from kdcache.store.io.object_path import Place, Root, locate
from kdcache.store.opening import open_plan
from kdcache.store.planned import cache_record, plan_layouts, plan_record, signal_layouts

__all__ = [
    "Cache",
    "Claims",
    "Layout",
    "Place",
    "Root",
    "Writer",
    "cache_record",
    "create",
    "locate",
    "open_cache",
    "open_plan",
    "plan_layouts",
    "plan_record",
    "signal_layouts",
    "write_plan",
]
