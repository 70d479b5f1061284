"""One section of the page per module."""
