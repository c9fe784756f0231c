"""Sweep: many students from one cache, what each is worth when it is shipped, and which to take."""
