"""Who may ask, how much and for what: keys, limits and flags, without any web framework."""
