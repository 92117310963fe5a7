"""Who holds which images."""
