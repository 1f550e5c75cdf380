"""What the server tells of itself: the access log."""
