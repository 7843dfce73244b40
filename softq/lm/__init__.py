"""The edge to language models: load them, score tokens with them, in whatever layout is fastest and right."""
