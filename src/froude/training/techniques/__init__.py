"""Published techniques of training, one file each."""
