"""The Hub folder: what a model repository needs to work without this package. Flat, and imports nothing above it."""
