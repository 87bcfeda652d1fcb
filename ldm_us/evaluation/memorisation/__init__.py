"""Memorisation: which samples are copies of training images."""
