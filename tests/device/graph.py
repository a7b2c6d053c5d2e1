"""Gradients without torch's autograd engine, which refuses tensors of a device that is not there."""

from __future__ import annotations

from typing import Any

import torch


def gradients(
    outputs: Any, inputs: Any, grad_outputs: Any = None, retain_graph: bool | None = None
) -> tuple[torch.Tensor, ...]:
    """`torch.autograd.grad` by the same nodes of the graph, without torch's engine."""
    outputs, inputs, given = (
        [x] if isinstance(x, torch.Tensor) else list(x or []) for x in (outputs, inputs, grad_outputs)
    )
    ends = [torch.autograd.graph.get_gradient_edge(one) for one in outputs]
    wanted = [torch.autograd.graph.get_gradient_edge(one) for one in inputs]
    order: dict[Any, None] = {}
    stack = [(end.node, False) for end in ends]
    while stack:
        node, done = stack.pop()
        if done:
            order.setdefault(node)
        elif node not in order:
            stack += [(node, True), *((after, False) for after, _ in node.next_functions if after is not None)]
    received: dict[tuple[Any, int], torch.Tensor] = {}

    def receive(node: Any, at: int, grad: torch.Tensor) -> None:
        if node._input_metadata:
            grad = grad.sum_to_size(node._input_metadata[at].shape)
        received[node, at] = received[node, at] + grad if (node, at) in received else grad

    with torch.no_grad():
        for end, grad in zip(ends, given or [torch.ones_like(one) for one in outputs], strict=True):
            receive(end.node, end.output_nr, grad)
        for node in reversed(order):
            into = [received.get((node, at)) for at in range(len(node._input_metadata))]
            if not node.next_functions or all(one is None for one in into):
                continue
            made = node(*into)
            made = made if isinstance(made, tuple) else (made,)
            for (after, at), grad in zip(node.next_functions, made, strict=False):
                if after is not None and grad is not None:
                    receive(after, at, grad)
    return tuple(received[one.node, one.output_nr] for one in wanted)
