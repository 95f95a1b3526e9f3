"""Thin shells: parse the command line, call one public function, print.

A command module imports only typer at the top and loads its rooms inside the command, so that help stays instant. It
offers ``register(app)``.
"""
