"""Maintenance: caches copied, merged, exported, verified, held against their teacher, repaired."""
