"""Serving: the plugin for vLLM, and the gate of the OpenAI-style server."""
