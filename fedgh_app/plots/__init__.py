"""The pictures of a run, drawn at its end from its history; and who holds what, drawn at its start."""
