"""Small generated text worlds whose true reward is known for every token."""
