"""What a load test leaves: tables, figures, JSON and a page."""
