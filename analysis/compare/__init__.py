"""Comparing runs: grouping, budgets, significance, the table, the figures and the page."""
