"""Device profiles that other tools wrote, read as devices with tables of measured kernels."""
