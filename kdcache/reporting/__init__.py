"""Reports: what students, their teachers and caches came to, as one page."""
