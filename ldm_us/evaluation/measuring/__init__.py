"""Measuring a model by what it makes: reconstructions, samples by mask, samples by class."""
