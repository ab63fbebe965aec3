"""Answers about whole collections: files, tar shards, Parquet files and datasets, on one machine or on Ray."""
