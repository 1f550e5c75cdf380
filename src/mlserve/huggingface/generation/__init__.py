"""Text generation: all requests of a decoder together, a token of each at a time."""
