"""Answers about whole collections: files, tar shards, Parquet files and data sets, on one machine or on Ray."""
