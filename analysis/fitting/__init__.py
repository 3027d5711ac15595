"""What fitting a law is made of: windows, the two ways of solving, uncertainty, intervals, checks."""
