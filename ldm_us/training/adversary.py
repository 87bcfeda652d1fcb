"""The adversary of the autoencoder: a discriminator that learns beside it, and what it adds to the loss.

Papers: arXiv 2112.10752 (LDM), Eq. 25; arXiv 2012.09841 (VQGAN), Eq. 6 and 7. The code of both has a hinge loss, and
lets the adversary in after some steps.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_us.diffusion.noise import torch_seed
from ldm_us.networks.discriminator import Discriminator
from ldm_us.runtime.processes import World
from ldm_us.training.distributed import average_over_processes

BETAS = (0.5, 0.9)  # of Adam, as LDM has them
DELTA = 1e-4  # of the adaptive weight, in the code of both papers; VQGAN's text has 1e-6
LARGEST = 1e4  # adaptive weight, as in their code
NARROWEST = 32  # discriminator: one of fewer channels is no match for any decoder


class Adversary:
    """The discriminator and its optimiser. A class only because it is state that a run saves and resumes."""

    def __init__(self, width: int, weight: float, start: int, seed: int, device: torch.device, world: World):
        """width: of the autoencoder; weight: of the term; start: steps before it acts, and before it learns."""
        self.weight, self.start, self.world = weight, start, world
        self.steps = 0  # that the run has made
        self.pairs: list[tuple[Tensor, Tensor]] = []  # x and x_hat of the parts of this step's batch
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(seed))
            self.discriminator = Discriminator(max(NARROWEST, width // 2)).to(device).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters(), betas=BETAS, fused=True)

    def term(self, x: Tensor, x_hat: Tensor, errors: Tensor, last: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What images x and x_hat (b, 3, H, W) add to the autoencoder's loss, a scalar; and what the log should hold.

        errors (b,): what else each x_hat is trained on; last: the decoder's last weight. Keeps the images for `update`.
        """
        if self.steps < self.start:
            nothing = x_hat.new_zeros(())
            return nothing, {"adversarial": nothing, "lambda": nothing}
        adversarial = -self.discriminator(x_hat).float().mean(dim=(1, 2, 3))  # (b,)
        if not x_hat.requires_grad:  # only looked at: there is no gradient to weigh it by
            return 0 * adversarial.mean(), {}
        self.pairs.append((x, x_hat.detach()))
        adaptive = adaptive_weight(errors, adversarial, x_hat, last)
        loss = self.weight * (adaptive * adversarial).mean()  # VQGAN Eq. 6
        return loss, {"adversarial": adversarial.detach().mean(), "lambda": adaptive.mean()}

    def update(self, lr: float) -> dict[str, Tensor | float]:
        """Train the discriminator on the images of this step, after the autoencoder has learned; -> its loss."""
        self.steps += 1
        total: Tensor | float = 0.0
        parts = len(self.pairs)
        if parts:
            self.discriminator.requires_grad_(True)
            for x, x_hat in self.pairs:
                real, fake = self.discriminator(torch.cat([x, x_hat])).float().chunk(2)
                loss = hinge_loss(real, fake) / parts
                loss.backward()
                total = total + loss.detach()
            average_over_processes(self.discriminator.parameters(), self.world)
            self.optimizer.param_groups[0]["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.discriminator.requires_grad_(False)
            self.pairs = []
        return {"discriminator": total}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        networks = {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {"steps": self.steps} | networks

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo state_dict."""
        self.steps = state["steps"]
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss from its logits of real and of decoded patches, any shape -> scalar.

    The log-likelihoods of VQGAN Eq. 5 as its code has them, after arXiv 1705.02894 (Geometric GAN).
    """
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def adaptive_weight(errors: Tensor, adversarial: Tensor, x_hat: Tensor, last: Tensor) -> Tensor:
    """lambda (b,) of the losses of each image, (b,) twice: it makes their gradients at the decoder's last weight equal.

    LDM takes one lambda from the batch of a process. Here each image has its own, as in a batch of one: then the result
    does not depend on how a batch is cut over processes and into parts.
    """
    norms = [norms_at(last, x_hat, loss) for loss in (errors, adversarial)]
    return (norms[0] / (norms[1] + DELTA)).clamp(0, LARGEST)  # VQGAN Eq. 7


def norms_at(last: Tensor, x_hat: Tensor, loss: Tensor) -> Tensor:
    """The norm (b,) of the gradient that the loss (b,) of each image of x_hat (b, 3, H, W) has at one weight."""
    (at_x_hat,) = torch.autograd.grad(loss.sum(), x_hat, retain_graph=True)
    norms = []
    for i in range(len(x_hat)):
        of_image = torch.zeros_like(x_hat)
        of_image[i] = at_x_hat[i]
        (gradient,) = torch.autograd.grad(x_hat, last, of_image, retain_graph=True)
        norms.append(gradient.float().norm())
    return torch.stack(norms)
