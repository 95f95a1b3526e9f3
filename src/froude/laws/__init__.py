"""Scaling laws: predict, fit, allocate; one file each."""
