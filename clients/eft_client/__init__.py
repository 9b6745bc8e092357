"""Programs that use an EFT server or its checkpoints; nothing here imports the server."""
