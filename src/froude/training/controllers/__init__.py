"""Published controllers of training, one file each."""
