"""Serving by an engine with continuous batching: what vLLM needs to know about mPLUG-Owl."""
