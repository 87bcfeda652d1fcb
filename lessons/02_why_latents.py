"""Lesson 2: why does diffusion run on latents, and what does the autoencoder lose?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import marimo as mo
    import numpy as np
    import show
    import torch

    import ldm_us
    from ldm_us.data.audit.statistics import high_passed
    from ldm_us.diffusion.grain import noise_shape
    from ldm_us.evaluation.realism.speckle import correlation_width, homogeneous_blocks, speckle_figures
    from ldm_us.networks.vae import DiagonalGaussian


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 2. Why latents?

    **Why does the diffusion run on latents and not on pixels, and what is lost on the way?**

    The denoiser is called at every step. Its cost grows with the positions it sees, and that of its attention with
    their square. So an autoencoder first makes the image small: $z_0 = E(x)$, $x \approx D(z_0)$ (LDM section 3.1).
    """)


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)
    count = mo.ui.slider(2, 12, value=6, label="phantoms")
    mo.md(f"{count}")
    return count, model


@app.cell
def _(count, model):
    x, _ = show.phantoms(90, int(count.value))  # (n, 3, 128, 128) in [-1, 1]
    z = model.vae.encode(x).mean.detach()  # (n, 4, 32, 32)
    x, x_hat = x / 2 + 0.5, (model.vae.decode(z) / 2 + 0.5).clamp(0, 1).detach()
    lost = (0.5 + 2 * (x - x_hat)).clamp(0, 1)
    show.images([torch.stack([each[0].mean(dim=0) for each in (x, x_hat, lost)])], ["x", "D(E(x))", "lost, twice"])
    return x, x_hat, z


@app.cell
def _(x, x_hat, z):
    psnr = float(-10 * (x - x_hat).square().mean(dim=(1, 2, 3)).log10().mean())
    mo.md(f"Numbers in an image: {x[0, 0].numel()}; in its latents: {z[0].numel()}. Mean PSNR: **{psnr:.1f} dB**")


@app.cell
def _(z):
    show.images([show.contrast(z[0])], [f"latent channel {c}" for c in range(4)])


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Layers and lesion stand in each channel: a latent is still a picture. Now look at *lost*: hardly an edge, mostly
    grain. What the autoencoder loses is **speckle**.

    Why this, of all things? It is trained with $E|x - \hat{x}|$, and speckle is noise to it: no room in a quarter of
    the numbers. For values that cannot be known the best answer $c$ has
    $$\dfrac{d}{dc} E|x - c| = P(x < c) - P(x > c) = 0$$
    so $c$ is the **median**: one grey for the whole neighbourhood. The loss itself asks for smooth tissue.

    Smooth can be measured. A grain's width is that of the autocorrelation; Nakagami's $m$ is 1 for fully developed
    speckle and grows as the texture becomes even.
    """)


@app.cell
def _(model, x, x_hat):
    def measured(images):
        """Medians over the images: grain width along depth and across it, in pixels, and Nakagami m."""
        grey = (images[:, 0] * 255).round().numpy().astype(np.uint8)
        details = [high_passed(image) for image in grey]
        shape = [speckle_figures(image, homogeneous_blocks(image))[0] for image in grey.astype(float)]
        widths = [[correlation_width(each), correlation_width(each.T)] for each in details]
        return [*np.median(widths, axis=0), np.nanmedian(shape)]

    noise = torch.randn(noise_shape(x_hat), generator=torch.Generator().manual_seed(0))
    grained = model.grain(x_hat, noise).detach()  # Grain Eq. 1: x = D(z) + g(D(z)) (h * n)
    rows = {"phantoms": x, "D(E(x))": x_hat, "D(E(x)) with grain": grained}
    mo.md(show.table(["along depth", "across", "m"], {name: measured(images) for name, images in rows.items()}))
    return (grained,)


@app.cell
def _(grained, x, x_hat):
    crops = [each[0, :, 32:80, 32:80].mean(dim=0) for each in (x, x_hat, grained)]
    show.images([torch.stack(crops)], ["phantom, 48x48 pixels", "D(E(x))", "with grain"])


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **Grain** draws speckle anew, with the strength (by grey) and the spectrum (by depth) of what is lost. It is the
    right *kind* of texture in the wrong place: fine for a sample, wrong for a restored image, where it costs PSNR. It
    is a Gaussian field, so a network trained to tell still tells it from speckle (see the model card).

    ## Exercise: the posterior of a latent

    $E$ gives two numbers for each latent: a mean and the **logarithm of a variance**. Training draws from $N(\mu,
    \sigma^2)$, with both scaled so that latents have a spread of about 1. Clamp the logarithm to -30 to 20, so that no
    weight can make it overflow. Then: `python -m lessons.check 2`.
    """)


@app.function
def posterior_from_moments(moments: torch.Tensor, scale: float) -> DiagonalGaussian:
    """(b, 2c, h, w), means and then log variances -> the distribution of the scaled latents."""
    raise NotImplementedError(
        "split moments, get std from the log variance, return DiagonalGaussian(mean, std), scaled."
    )


if __name__ == "__main__":
    app.run()
