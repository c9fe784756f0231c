"""Teaching: labels and an encoder become a teacher."""

from kdcache.teaching.run import TeachResult, teach

__all__ = ["TeachResult", "teach"]
