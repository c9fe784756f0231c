"""Where the time of a step goes: the caller's own student, recipe and cache, on this machine."""
