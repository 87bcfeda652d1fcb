"""Lesson 7: what does each box of the UNet do, and what happens when one is switched off?"""

import marimo  # missing? python -m pip install -e ".[lessons]"

__generated_with = "0.25.2"
app = marimo.App()

with app.setup:
    import math

    import marimo as mo
    import show
    import torch

    import ldm_us
    from ldm_us.diffusion.ddpm import predict_z_0, q_sample
    from ldm_us.diffusion.sampling import decode
    from ldm_us.networks import layers, transformer, unet


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    # 7. The UNet, box by box

    **What does each box of the UNet do, and what happens when one is switched off?**

    $z_t$ goes down on the left, to fewer and wider maps, and up on the right. Each block on the right first takes a map
    from the left: a *skip*. The whole network is a few lines:
    """)


@app.cell
def _():
    mo.md(show.source(unet.UNet.forward))


@app.cell
def _():
    model = ldm_us.load_model(ldm_us.BUNDLED)
    boxes = []  # (kind, channels, side) in the order in which they are run
    kinds = (unet.ResBlock, transformer.SpatialTransformer, unet.Downsample, layers.Upsample)
    parts = [part for part in model.unet.modules() if isinstance(part, kinds)]
    for part in (model.unet.encoder.conv_in, *parts, model.unet.decoder.conv_out):
        part.register_forward_hook(lambda box, _, output: boxes.append((type(box).__name__, *output.shape[1:3])))
    context = model.encode_prompts(["Ultrasound image of a benign breast"]).detach()
    model.unet(torch.zeros(1, 4, 32, 32), torch.tensor([0]), context)
    show.boxes(boxes)
    return context, model


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    Drawn from the shapes of one call: the height is the side of a map (below), the number above its channels. *Residual
    blocks* mix neighbours, and each adds the timestep. *Transformers* let distant places talk, and look at the words.
    They stand where maps are small: the cost of attention grows with the square of the positions.

    ## Switch one off

    The network gets a noised phantom and says what the clean one is (lesson 4): first as it is, then with a wrong $t$,
    with the words of no prompt, and without one skip. ControlNet *adds* to the skips, so a control of minus the skip
    takes it away.
    """)


@app.cell
def _():
    step = mo.ui.slider(100, 900, value=600, label="t")
    other = mo.ui.slider(0, 999, value=200, label="the wrong t")
    mo.md(f"{step} {other}")
    return other, step


@app.cell
def _(context, model, other, step):
    x, _masks = show.phantoms(93, 3)
    z_0, t = model.vae.encode(x).mean.detach(), torch.full((3,), int(step.value))
    z_t = q_sample(model.schedule, z_0, t, torch.randn(z_0.shape, generator=torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def guess(seen=t, states=context.expand(3, -1, -1), dropped=None):  # noqa: B008
        """z_0_hat, with the timestep and the text that the network is told; one skip may be dropped."""
        _, skips = model.unet.encoder(z_t, model.unet.time(seen), states)
        control = unet.Control([-skip * (i == dropped) for i, skip in enumerate(skips)], torch.zeros(()))
        return predict_z_0(model.schedule, z_t, t, model.unet(z_t, seen, states, control))

    answers = {"as it is": guess(), "wrong t": guess(seen=torch.full((3,), int(other.value)))}
    answers["no prompt"] = guess(states=model.encode_prompts([""] * 3))
    answers |= {f"no skip {i}": guess(dropped=i) for i in range(6)}
    errors = {name: float((answer - z_0).square().mean()) for name, answer in answers.items()}
    shown = ["as it is", "wrong t", "no prompt", "no skip 0", "no skip 3"]
    rows = torch.stack([decode(model, z).mean(dim=1) for z in (*(answers[name] for name in shown), z_0)], dim=1)
    show.images(list(rows[:2]), [*shown, "z_0"])
    return (errors,)


@app.cell
def _(errors):
    mo.md(show.table(list(errors), {"error of z_0_hat": list(errors.values())}, form=".3f"))


@app.cell(hide_code=True)
def _():
    mo.md(r"""
    **A wrong t**: the network takes away as much noise as it was told there is. **Skip 0** is the first convolution of
    $z_t$, carried past all the narrow places; without it the noise cannot be named pixel by pixel. The coarse skips
    cost less, some nothing. **The prompt** costs little at one step; lesson 6 shows what it does over a walk.

    **Honest limit.** A network trained without a skip would have learned to live without it. Switching off shows what
    *this* network uses, not what a UNet needs.

    ## Exercise: how a number enters a network

    The timestep becomes `width` numbers: the cosines of $t \, f_i$, then the sines of the same, at frequencies from
    $f_0 = 1$ down. The frequencies are given. Write the rest. Then: `python -m lessons.check 7`.
    """)


@app.function
def timestep_embedding(t, width, max_period=10000.0):
    """(b,) -> (b, width) float32."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(width // 2) / (width // 2))  # (width / 2,)
    raise NotImplementedError("from t and frequencies, the cosines and then the sines.")


if __name__ == "__main__":
    app.run()
