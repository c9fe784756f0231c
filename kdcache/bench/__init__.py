"""Benchmarks that a user can run: `kdcache bench`. Each checks the answer before it times it."""
