"""softq: your language model is a Q-function."""
