"""Measuring the laws on families of runs: errors and coverage on what is held out, and the constants they rest on."""
