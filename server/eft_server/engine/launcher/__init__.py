"""In the API's process, before the engine: where its processes come from, and how its start is shown."""
