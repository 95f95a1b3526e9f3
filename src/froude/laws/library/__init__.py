"""The laws, one published form per file; `froude.laws.law.LAWS` finds them."""
