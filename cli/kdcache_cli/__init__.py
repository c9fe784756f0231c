"""The command line of kdcache: a thin layer over its Python API."""
