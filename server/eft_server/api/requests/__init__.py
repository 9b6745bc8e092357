"""What a request may hold: each field is supported, or refused by name."""
