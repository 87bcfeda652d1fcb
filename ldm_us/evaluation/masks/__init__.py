"""Mask fidelity: do samples obey their masks?"""
