"""Who wrote which part: claims, parts, and the commits that make them count."""
