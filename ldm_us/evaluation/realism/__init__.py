"""Realism in figures that sonography knows."""
