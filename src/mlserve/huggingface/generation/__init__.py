"""Text generation; so far what a text has to look like, as masks over the next token."""
