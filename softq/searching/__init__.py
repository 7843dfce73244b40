"""What `softq search` does: prompts and models opened, searched in groups, and what was found scored in full."""
