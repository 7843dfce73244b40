"""What was learned, for people: numbers per token to colours, tables and pages."""
