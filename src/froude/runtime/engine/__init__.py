"""A small serving engine with a paged KV cache, driven by the simulator's own schedulers. Needs the ``tank`` extra."""
