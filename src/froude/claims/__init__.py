"""Published results as data, the runner that reproduces them, and coverage of the catalogue."""
