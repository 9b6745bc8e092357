"""What a study leaves: sentences, tables, figures and a page."""
