"""Samples as files: which ones, drawn the same everywhere, with all that it takes to draw each of them again."""
