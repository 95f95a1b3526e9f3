"""Tables, waterfalls, figures, HTML: the only place where numbers are formatted."""
