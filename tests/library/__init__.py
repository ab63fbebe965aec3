"""The library's own tests, run on this model."""
