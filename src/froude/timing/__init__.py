"""How long one operator, collective or transfer takes on a machine, and what it draws."""
