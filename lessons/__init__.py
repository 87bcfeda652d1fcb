"""Ten lessons on latent diffusion, each a question: marimo notebooks that are plain Python files (see README.md)."""
