"""One site: the Flower client, what it keeps to itself, and what it may be told."""
