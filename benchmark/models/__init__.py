"""What travels to the Hub with a model; imports nothing of the project outside this folder."""
