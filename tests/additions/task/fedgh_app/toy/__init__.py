"""Telling dark images from bright ones: the least that a task is."""
