"""Batching, KV cache, scheduling policies; simulation by jumping between events."""
