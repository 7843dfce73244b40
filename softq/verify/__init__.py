"""Laws: what must hold of every method on a table, and of a user's own model; each with what it means if it does not."""
