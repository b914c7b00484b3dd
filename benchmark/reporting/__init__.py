"""What a run leaves: its folder, results, logs, pictures, model card, and what is on the Hub."""
