"""The version, which kdcache and kdcache-kernels share, and a refusal of two of them.

Both distributions bring the folder `kdcache_kernels`: kdcache with all that uses it, and
kdcache-kernels alone. pip lets the one write over the other, which leaves a mixture of both.
"""

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.2.0"

WHOLE, ALONE = "kdcache", "kdcache-kernels"


def require_one_version() -> None:
    """Raise ImportError if both distributions are installed and their versions differ."""
    try:
        whole, alone = version(WHOLE), version(ALONE)
    except PackageNotFoundError:
        return
    if whole != alone:
        raise ImportError(
            f"{WHOLE} {whole} and {ALONE} {alone} are both installed, and both bring the package "
            f"kdcache_kernels, which has to be of one version. run: "
            f"pip uninstall -y {ALONE}, then install {WHOLE} {whole} again, which brings its own: "
            "pip install --force-reinstall --no-deps"
        )


require_one_version()
