"""One run: its processes, its loop, its steps, and how it survives being interrupted."""
