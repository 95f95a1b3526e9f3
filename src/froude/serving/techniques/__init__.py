"""Techniques of serving, one file each; `froude.serving.technique` says what one may rewrite."""
