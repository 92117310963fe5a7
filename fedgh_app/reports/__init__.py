"""Runs side by side: tables, paired tests, a page to read."""
