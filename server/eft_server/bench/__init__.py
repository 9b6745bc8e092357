"""What the composite costs beside its members one by one, measured in one run: `make bench`."""
