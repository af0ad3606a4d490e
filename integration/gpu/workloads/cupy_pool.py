"""Computes with CuPy, whose pool takes arrays of many sizes and gives them back."""

from __future__ import annotations

import cupy

from integration.gpu.workloads import steps

WIDTH = 512


def main() -> None:
    random = cupy.random.RandomState(9)
    state = random.standard_normal((WIDTH, WIDTH), dtype=cupy.float32)
    kept: list[cupy.ndarray] = []

    def step(number: int) -> float:
        nonlocal state
        noise = random.standard_normal((WIDTH, WIDTH), dtype=cupy.float32)
        state = cupy.tanh(state @ noise / WIDTH**0.5) + noise * cupy.float32(0.01)
        kept.append(cupy.full(1000 * (1 + number % 7), number, dtype=cupy.int64))
        if len(kept) > 5:
            del kept[number % 5]
        return float(state.sum()) + int(sum(int(one[-1]) for one in kept))

    steps.run(step, lambda: cupy.asnumpy(state).tobytes())


if __name__ == "__main__":
    main()
