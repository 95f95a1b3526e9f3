"""What every room uses: errors, specs, registries, estimates, arrays. Imports nothing of the house.

Import from the modules (``froude.core.errors``): keeping this file empty keeps ``froude --help`` fast.
"""
