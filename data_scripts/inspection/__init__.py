"""What `prepare` makes of people's own data before they are built: their pairs, labels and classes, and a recipe."""
