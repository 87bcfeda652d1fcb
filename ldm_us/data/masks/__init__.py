"""Masks: new ones like those of a dataset, and variations of given ones."""
