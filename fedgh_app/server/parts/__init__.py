"""What an axis adds to a round: one class a file, with the hooks of `part.Part`."""
