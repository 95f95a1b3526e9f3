"""Tasks, resources, dependencies and memory deltas; evaluated over arrays of candidates, or by events."""
