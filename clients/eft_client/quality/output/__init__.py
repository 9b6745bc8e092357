"""What a study leaves: tables, figures and a page."""
