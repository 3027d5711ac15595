"""One command that proves the whole GPU path on one card, with figures: ``make gpu``."""
