"""Doing it: plans executed on torch.distributed, and a small paged-KV engine driven by the simulator's policies."""
