"""Flower Grids around Grids: replies screened, models packed, clients called in one process."""
