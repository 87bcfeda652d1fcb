"""Distances between the distributions of real and generated images."""
