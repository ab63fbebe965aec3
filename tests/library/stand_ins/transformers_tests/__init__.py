"""The library's own tests, under a name that leaves `tests` free."""
