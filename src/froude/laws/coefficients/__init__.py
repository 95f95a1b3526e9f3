"""Published coefficients, one TOML file per law."""
