"""The demo: one teacher, one cache, several students, on sentences that anybody can fetch."""
