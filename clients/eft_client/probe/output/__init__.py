"""What `eft probe` leaves: tables, figures and a page."""
