"""The trainer and what it is made of; importing this package alone imports no torch."""
