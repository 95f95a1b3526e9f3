"""Published controllers of serving clusters, one file each."""
