"""A language model of random weights that goes on with a text, token by token, by its KV cache."""

from __future__ import annotations

import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from integration.gpu.workloads import steps
from integration.gpu.workloads.device import device

VOCABULARY = 1000


def main() -> None:
    torch.manual_seed(13)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=1024, n_embd=256, n_layer=6, n_head=8, use_cache=True
    )
    model = GPT2LMHeadModel(config).eval().to(device())
    cache = DynamicCache()
    token = torch.tensor([[1]], device=device())
    logits = torch.zeros(1)

    def step(_: int) -> tuple[int, float]:
        nonlocal token, logits
        with torch.no_grad():
            said = model(input_ids=token, past_key_values=cache, use_cache=True)
        logits = said.logits[:, -1]
        token = torch.multinomial(logits.softmax(-1), 1)
        return int(token), float(logits.sum())

    steps.run(step, lambda: logits.cpu().numpy().tobytes())


if __name__ == "__main__":
    main()
