"""Routers, one file each; `froude.serving.router` says what one is."""
