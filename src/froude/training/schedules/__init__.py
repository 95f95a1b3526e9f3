"""Pipeline schedules: an order of work, one file each."""
