"""Controllers that decide how many replicas serve, one file each; `froude.serving.autoscaling` says what one is."""
