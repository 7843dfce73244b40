"""Preference files to token ids, with an exact account of every row and token: rows, formats, encode, ledger, read."""
