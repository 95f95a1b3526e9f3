"""Eviction policies, one file each; `froude.serving.eviction` says what one promises."""
