"""Keeps what a CUDA program may hold beside memory, and uses all of it again and again.

Two streams with work and events pending, a captured graph that is replayed, pinned host memory,
and the handles of cuBLAS and cuDNN. Prints `COUNT ok pending=BOOL` five times a second, or
`COUNT wrong: WHAT`, where a result is not, to the last bit, what it was the first time.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import NamedTuple

import torch

INTERVAL_S = 0.15
SLEEP_CYCLES = 800_000_000  # about half a second of a kernel that does nothing
SIZE = 1024
REPLAY_STEP = 3.0


class Held(NamedTuple):
    """All that is made once, before the first checkpoint."""

    busy: torch.cuda.Stream
    copies: torch.cuda.Stream
    graph: torch.cuda.CUDAGraph
    graph_input: torch.Tensor
    graph_output: torch.Tensor
    pinned: torch.Tensor
    on_device: torch.Tensor
    convolution: torch.nn.Module
    image: torch.Tensor


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    torch.manual_seed(11)
    torch.use_deterministic_algorithms(mode=True)
    held = make()
    expected = results(held, 0)
    count = 0
    while True:
        count += 1
        event = begin_long_work(held)
        wrong = [
            name
            for name, value in results(held, count).items()
            if not torch.equal(value, expected[name])
        ]
        time.sleep(INTERVAL_S)
        pending = not event.query()
        print(count, f"wrong: {wrong}" if wrong else f"ok pending={pending}", flush=True)
        if count % 8 == 0:
            event.synchronize()


def make() -> Held:
    """Everything, used once so that each library has made its handle."""
    image = torch.randn(8, 3, 64, 64, device="cuda")
    convolution = torch.nn.Conv2d(3, 16, 3).cuda()
    convolution(image)
    graph_input = torch.full((SIZE, SIZE), 0.5, device="cuda")
    graph_input @ graph_input  # cuBLAS makes its workspace before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph_output = (graph_input @ graph_input).relu() + REPLAY_STEP
    return Held(
        busy=torch.cuda.Stream(),
        copies=torch.cuda.Stream(),
        graph=graph,
        graph_input=graph_input,
        graph_output=graph_output,
        pinned=torch.arange(SIZE * SIZE, dtype=torch.float32).pin_memory(),
        on_device=torch.empty(SIZE * SIZE, device="cuda"),
        convolution=convolution,
        image=image,
    )


def begin_long_work(held: Held) -> torch.cuda.Event:
    """An event that is reached when the busy stream has slept for a while."""
    event = torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(held.busy):
        torch.cuda._sleep(SLEEP_CYCLES)  # noqa: SLF001 -- no other kernel takes a time of our choice
        event.record(held.busy)
    return event


def results(held: Held, count: int) -> dict[str, torch.Tensor]:
    """What each part of *held* computes; the same for every *count*."""
    back = torch.empty_like(held.pinned).pin_memory()
    held.pinned[0] = count
    with torch.cuda.stream(held.copies):
        held.on_device.copy_(held.pinned, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(held.copies)
        back.copy_(held.on_device, non_blocking=True)
    copied.synchronize()
    held.copies.synchronize()
    assert back[0] == count, "a pinned copy brought something old"
    held.graph_input.fill_(0.5 + count)
    held.graph.replay()
    replayed = held.graph_output.clone()
    held.graph_input.fill_(0.5)
    held.graph.replay()
    product = held.graph_input @ held.graph_input
    with torch.no_grad():
        convolved = held.convolution(held.image)
    torch.cuda.current_stream().synchronize()
    wanted = SIZE * (0.5 + count) ** 2 + REPLAY_STEP
    assert abs(float(replayed[0, 0]) / wanted - 1) < 1e-3, "the graph did not see its input"
    return {
        "pinned memory": back[1:].clone(),
        "graph": held.graph_output.cpu(),
        "cuBLAS": product.cpu(),
        "cuDNN": convolved.cpu(),
    }


if __name__ == "__main__":
    main()
