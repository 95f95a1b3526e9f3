"""Models that really run: readable PyTorch, random or real weights. Needs the ``tank`` extra (torch)."""
