"""Diffusion: the schedule, the samplers, guidance and control, and edits of images."""
