"""Training: a recipe and a cache to a student."""
