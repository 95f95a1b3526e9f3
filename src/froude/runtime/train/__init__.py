"""Training for real: a plan executed on `torch.distributed`, one process per device."""
