"""Who writes which part of a cache: claims and writers."""
