"""Training objectives, each in a file of its own."""
