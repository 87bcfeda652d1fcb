"""Networks: the VAE, the UNet, the text encoder and the ControlNet of Stable Diffusion 1.5."""
