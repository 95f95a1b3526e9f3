"""Launch commands for other software, and their arguments read back."""
