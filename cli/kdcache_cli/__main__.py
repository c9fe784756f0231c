"""Lets `python -m kdcache_cli` stand for `kdcache`."""

import sys

from kdcache_cli.main import main

sys.exit(main())
