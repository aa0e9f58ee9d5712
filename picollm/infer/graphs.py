"""Steps on a GPU as CUDA graphs: one launch for the hundreds of kernels of a token."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Sequence[Tensor]]


class StepGraphs:
    """Steps captured when they are first met, by a key of everything that is fixed in them.

    A step reads and changes tensors that stay where they are, and returns new ones. Where capturing fails, steps run
    as they are from then on, and `warn` gets one line.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.warn, self.works = warn, True
        self._captured: dict[Hashable, tuple[Any, Sequence[Tensor]]] = {}
        self._pool: Any = None

    def run(self, key: Hashable, step: Step, state: Sequence[Tensor]) -> Sequence[Tensor]:
        """What `step` returns. `state`: the tensors it changes, which trying it out must leave alone."""
        if self.works and key not in self._captured:
            try:
                self._captured[key] = self._capture(step, state)
            except Exception as error:  # of the driver, of a kernel, of memory: they have no common base class
                self.works = False
                self.forget()
                reason = next(iter(str(error).splitlines()), "") or repr(error)
                self.warn(f"answers are made without CUDA graphs, which do not work here ({reason})")
        if not self.works:
            return step()
        graph, outputs = self._captured[key]
        graph.replay()
        return [output.clone() for output in outputs]  # the next replay writes over them

    def forget(self) -> None:
        """To be called when a tensor of the state has been replaced by another."""
        self._captured.clear()
        self._pool = None  # it ends with the last graph in it, and capturing into one that has ended fails

    def _capture(self, step: Step, state: Sequence[Tensor]) -> tuple[Any, Sequence[Tensor]]:
        before = [tensor.clone() for tensor in state]
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # libraries allocate what they need when first used
                step()
                step()
            torch.cuda.current_stream().wait_stream(side)
        finally:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = step()
        self._pool = graph.pool()
        return graph, outputs
