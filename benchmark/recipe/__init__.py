"""What is run: typed keys, the files and flags they come from, and which of them make two runs the same."""
