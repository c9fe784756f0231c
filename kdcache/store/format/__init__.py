"""What lies on the disk: the manifest, arrays in shards, commits."""
