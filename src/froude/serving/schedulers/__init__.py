"""Schedulers, one file each; `froude.serving.policy` says what one is."""
