"""Code for the API's process before the engine runs: how its processes are started, and how the start is shown."""
