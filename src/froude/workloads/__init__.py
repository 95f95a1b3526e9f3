"""What arrives: request traces and length distributions."""
