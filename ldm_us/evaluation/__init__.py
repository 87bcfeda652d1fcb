"""Evaluation: is what the model makes any good?"""
