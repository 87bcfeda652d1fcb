"""Latent diffusion for ultrasound images: Stable Diffusion 1.5 and ControlNet, written by hand."""

__version__ = "0.1.0"
