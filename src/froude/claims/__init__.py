"""Published results as data, the runner that lets them emerge or fail, and what is true of every catalogued work."""
