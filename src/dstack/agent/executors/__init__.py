"""How a task is run: as a process, in a container, or simulated."""
