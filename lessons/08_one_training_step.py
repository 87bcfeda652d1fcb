"""Lesson 8: what happens in one step of training?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import marimo as mo
    import show
    import torch

    import ldm_us
    from ldm_us.diffusion.ddpm import predict_z_0, q_sample
    from ldm_us.diffusion.sampling import decode
    from ldm_us.training import losses
    from ldm_us.training.batches import LatentBatch
    from ldm_us.training.start import random_model


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 8. One training step

    **What happens in one step of training?**

    DDPM's algorithm 1: take an image, draw a $t$, draw a noise, mix, ask for the noise, and step down the gradient of
    the squared error. No image is ever made.

    **Why a squared error?** Maximum likelihood leads there: every step back is a Gaussian, and the divergence of two
    Gaussians of one variance is the squared distance of their means, $\|\mu - \hat{\mu}\|^2 / 2 \sigma^2$. Written in
    noise, the means differ by a multiple of $\epsilon - \hat{\epsilon}$; dropping the multiple weighs all $t$ alike
    (DDPM Eq. 14). **Why the noise?** It has variance 1 at every $t$.
    """)


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)  # for its autoencoder and text encoder: they stay as they are
    classes = ("normal", "benign", "malignant")
    prompts = ["", *(f"Ultrasound image of a {label} breast" for label in classes)]  # "": a dropped caption
    with torch.no_grad():
        posterior = model.vae.encode(torch.cat([show.phantoms(94, 12, label)[0] for label in classes]))  # 36 images
        texts = model.encode_prompts(prompts)  # (4, 77, d)
    steps = mo.ui.slider(3, 200, value=40, label="steps")
    mo.md(f"{steps}")
    return model, posterior, steps, texts


@app.cell
def _(model, posterior, texts):
    def draw_batch(generator, size=6):
        """All that is random in a step: images, their latents, dropped captions, t, eps."""
        index = torch.randint(0, len(posterior.mean), (size,), generator=generator)
        z_0 = posterior.sample(generator)[index]  # LDM section 3.1
        kept = torch.rand(size, generator=generator) > 0.1  # one caption in ten is dropped, for guidance
        t = torch.randint(0, model.schedule.timesteps, (size,), generator=generator)
        eps, hint = torch.randn(z_0.shape, generator=generator), torch.empty(0)  # no mask here
        return LatentBatch(z_0, (index // 12 + 1) * kept, hint, t, eps)

    def step(batch, optimizer):
        """DDPM algorithm 1, lines 2 to 5; -> the loss before the step."""
        z_t = q_sample(model.schedule, batch.z_0, batch.t, batch.eps)  # DDPM Eq. 4
        eps_hat = model.unet(z_t, batch.t, texts[batch.prompt_index])
        loss = (batch.eps - eps_hat).square().mean()  # DDPM Eq. 14
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return draw_batch, step


@app.cell
def _(draw_batch, model, step, steps, texts):
    generator = torch.Generator().manual_seed(0)
    model.unet = random_model("us128", seed=0).unet  # of the same shape, with fresh weights: it knows nothing
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-3)
    first = draw_batch(generator)
    theirs, _extra = losses.ddpm_loss(model, first, texts[first.prompt_index], use_control=False)
    mine = step(first, optimizer)
    assert mine == float(theirs.detach()), "the library's loss is another one"
    trained = [mine, *(step(draw_batch(generator), optimizer) for _ in range(int(steps.value) - 1))]
    show.curves({"loss": (range(len(trained)), trained)}, "step", f"loss (the first: {mine:.4f}, theirs {theirs:.4f})")
    return (trained,)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    The curve starts near 1, the variance of the noise: who answers 0 has that error. It falls fast, for at high noise
    $z_t$ *is* nearly the noise. It jumps, because each batch has its own $t$: never trust a single value. What did so
    few steps teach? Ask for $z_0$ at three noise levels:
    """)


@app.cell
def _(model, posterior, texts, trained):
    times = torch.tensor([100, 400, 800])
    z_0 = posterior.mean[18:19].expand(3, -1, -1, -1)
    z_t = q_sample(model.schedule, z_0, times, torch.randn(z_0.shape, generator=torch.Generator().manual_seed(9)))
    z_0_hat = predict_z_0(model.schedule, z_t, times, model.unet(z_t, times, texts[2:3].expand(3, -1, -1)))
    names = ["D(z_t)", f"{len(trained)} steps: D(z_0_hat)", "D(z_0)"]
    show.images([decode(model, z) for z in (z_t, z_0_hat, z_0)], [f"t = {each}" for each in times.tolist()], names)


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **Honest limit.** A model that draws takes thousands of steps, and this one sees 36 images again and again.
    `train.py` adds what long runs need and no other idea: a mean of the weights (EMA), a warm-up, states to go on from.

    ## Exercise: the loss

    `batch` has `z_0`, `t` and `eps`. The library's function returns the loss and a dictionary of further figures; yours
    needs none: return `loss, {}`. Then: `python -m lessons.check 8`.
    """)


@app.function
def ddpm_loss(model, batch, context, use_control, min_snr=None):
    """E |eps - eps_theta(z_t, t, context)|^2; call model.unet(z_t, t, context, None)."""
    raise NotImplementedError("noise batch.z_0 with q_sample, ask model.unet, return the mean squared error and {}.")


if __name__ == "__main__":
    app.run()
