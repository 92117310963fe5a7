"""Data sets of single arms that are made here: drawn by a program, or cut from photographs of whole people."""
