"""nanoGPT's recipe on the embedded data: ``nanogpt_recipe STEPS LR [eager]`` (``time_to_loss``).

Its model (``peers.nanogpt``), AdamW with betas 0.9 and 0.95, weight decay 0.1 on matrices,
clipping at 1, a linear warm-up of 100 steps and half a cosine down to a tenth, 8,192 tokens a
step, bfloat16 by autocast, compiled or not.
"""

import json
import sys
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from stages.errors import run
from stages.train.data_order import Batch
from stages.train.optimizer import parameter_groups
from tests.benchmarks.device import DEVICE
from tests.benchmarks.parley import SEED
from tests.benchmarks.peers import nanogpt
from tests.benchmarks.recipe import SHAPE, Corpus, Scored, compile_now, timed

WARM_UP, LEAST = 100, 0.1


def share_of_peak(step: int, steps: int) -> float:
    """nanoGPT's ``get_lr``, as a share of the learning rate."""
    if step < WARM_UP:
        return (step + 1) / (WARM_UP + 1)
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LEAST + (1 - LEAST) * 0.5 * (1 + cos(pi * progress))


def main() -> None:
    steps, lr, eager = int(sys.argv[1]), float(sys.argv[2]), "eager" in sys.argv[3:]
    corpus = Corpus.read()
    order = corpus.order(SHAPE.batch_size)
    torch.manual_seed(SEED)
    network = nanogpt(SHAPE).to(DEVICE)
    parameters = list(network.parameters())
    optimizer = AdamW(parameter_groups(parameters, 0.1), lr=lr, betas=(0.9, 0.95), fused=True)
    called = network if eager else torch.compile(network)

    def loss_of(batch: Batch) -> Tensor:
        moved = batch.to(DEVICE)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss: Tensor = called(moved.inputs, moved.labels)
        return loss

    def update(step: int, batch: Batch) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr * share_of_peak(step, steps)
        loss = loss_of(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    compile_now(loss_of(order.batch(0)), network)
    seconds = timed("nanogpt", order, steps, update)
    embedding = network.get_submodule("model.transformer.wte")
    scored = Scored(network.model, SHAPE.config(), embedding)
    result = {
        "bits_per_byte": corpus.bits_per_byte(scored),
        "seconds": seconds,
        "steps": steps,
        "tokens": steps * SHAPE.tokens,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "lr": lr,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    run("nanogpt_recipe", main)
