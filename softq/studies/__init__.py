"""Whole experiments: a command, a table, a picture."""
