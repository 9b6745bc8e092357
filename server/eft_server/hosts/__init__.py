"""Programs of others that run engines of this package."""
