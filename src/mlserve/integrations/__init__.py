"""One optional package per module; each says what to install where it is missing."""
