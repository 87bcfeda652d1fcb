"""The judge: a network that names classes and marks lesions, to measure samples with."""
