"""Building: a corpus to a plan, and a plan with a teacher to a cache."""
