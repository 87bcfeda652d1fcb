"""Lesson 9: a ControlNet starts from zeros; how can zeros learn?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import marimo as mo
    import show
    import torch
    from torch import nn

    import ldm_us
    from ldm_us.diffusion.ddpm import q_sample
    from ldm_us.networks.controlnet import ControlNet


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 9. ControlNet, from zero

    **A ControlNet is tied to its UNet by convolutions whose weights are all zero. How can zeros learn?**

    ControlNet copies the UNet's encoder, shows the copy a mask, and adds what it says to the UNet's skips, each through
    a 1x1 convolution that starts at zero (ControlNet Eq. 2). So a fresh ControlNet changes nothing. Not little:
    nothing.
    """)


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)
    fresh = ControlNet.from_unet(model.unet, model.config.control)
    x, mask = show.phantoms(95, 4)
    hint = mask.expand(-1, 3, -1, -1)  # (4, 3, 128, 128)
    with torch.no_grad():
        z_0, context = model.vae.encode(x).mean, model.encode_prompts(["Ultrasound image of a benign breast"] * 4)
        t, eps = torch.full((4,), 500), torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0))
        z_t = q_sample(model.schedule, z_0, t, eps)
        plain, tied = model.unet(z_t, t, context), model.unet(z_t, t, context, fresh(z_t, t, context, hint))
    scale = mo.ui.slider(0.0, 4.0, value=2.0, step=0.5, label="control scale")
    mo.md(f"The UNet's answer with a fresh ControlNet is equal in every bit: **{torch.equal(plain, tied)}** {scale}")
    return context, eps, fresh, hint, mask, model, scale, t, z_t


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    ## Why training is not stuck

    Take one zero convolution, $y = w \, u + b$ with $w = 0$; from the loss comes $g = \partial L / \partial y$:
    $$\partial L / \partial w = g \, u, \quad \partial L / \partial b = g, \quad \partial L / \partial u = w \, g = 0$$
    The gradient of the weight holds the *input*, and the input is not zero: it is a feature of a trained encoder. So
    the weight moves in the first step. What stays still is everything *behind* it: the copy, and the network that reads
    the mask. After one step $w \neq 0$, and then these learn too. Predict the zeros of the table before you look.
    """)


@app.cell
def _(context, eps, fresh, hint, model, t, z_t):
    fresh.requires_grad_(True)
    groups = {
        "zero convolutions": [*fresh.zero_convs.parameters(), *fresh.zero_conv_middle.parameters()],
        "the copied encoder": list(fresh.encoder.parameters()),
        "the hint's last convolution": list(fresh.hint_network.conv_out.parameters()),
        "the hint's other convolutions": list(fresh.hint_network.convs.parameters()),
    }
    optimizer, norms = torch.optim.SGD(fresh.parameters(), lr=0.1), {name: [] for name in groups}
    for _step in range(4):
        eps_hat = model.unet(z_t, t, context, fresh(z_t, t, context, hint))
        optimizer.zero_grad()
        (eps_hat - eps).square().mean().backward()  # ControlNet Eq. 5
        for _name, _parameters in groups.items():
            norms[_name].append(float(torch.stack([p.grad.norm() for p in _parameters]).norm()))
        optimizer.step()
    zero, copied, last, others = norms.values()
    assert zero[0] > 0 == copied[0] == last[0] == others[0], "in the first step only the zero convolutions learn"
    assert min(copied[1], last[1]) > 0 == others[1] < others[2], "then the copy, and one step later all of the hint"
    mo.md("Gradients before each step:\n\n" + show.table([f"step {i}" for i in range(1, 5)], norms, form=".1e"))


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    The hint network ends in a zero convolution of its own, so the same argument runs twice: its first layers wake one
    step later still. Zeros behind zeros learn one after the other, as long as each has a living input; here the copy's
    features come from $z_t$ as well. Feed a zero convolution with nothing but the zeros of another, and neither weight
    ever moves.

    ## When it has learned

    The bundled ControlNet, with three weights of the mask, two seeds:
    """)


@app.cell
def _(mask, model, scale):
    scales, drawn = [0.0, 1.0, float(scale.value)], [mask[:2].expand(-1, 3, -1, -1)]
    for weight in scales:
        sampling = ldm_us.Sampling(steps=15, control_scale=weight, guidance=1.0)
        prompts = ["Ultrasound image of a benign breast"] * 2
        drawn.append(ldm_us.generate(model, prompts, seeds=[1, 2], masks=mask[:2], sampling=sampling))
    show.images(list(torch.stack(drawn, dim=1)), ["mask", *(f"scale {weight:g}" for weight in scales)])


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Left to right, look at the dark region: the lesion that the noise wanted fades, and one grows where the mask is.
    **Honest limit:** these lesions are plainer than those of phantoms, and a mask says where, not what.

    ## Exercise: a zero convolution

    An `nn.Conv2d` that keeps height and width (pad by half the kernel) and gives exactly zero at the start. Mind what
    PyTorch puts into the bias. Then: `python -m lessons.check 9`.
    """)


@app.function
def zero_conv(channels_in: int, channels_out: int, kernel: int = 1) -> nn.Conv2d:
    """A convolution that starts as zero."""
    raise NotImplementedError("make an nn.Conv2d with padding, zero all that it holds, return it.")


if __name__ == "__main__":
    app.run()
