"""What a row of the family table says of one stack of blocks; the rows themselves stand in `rows`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Site = tuple[str, int]
"""Which FFN: the name of its stack and the index of its layer."""

Side = Literal["input", "output"]
"""Which tokens a stack runs over: those the model reads, or those that a decoder beside an encoder writes."""


@dataclass(frozen=True)
class Routing:
    """How the tokens of a mixture of experts find theirs: those with the largest softmax of what the router gives.

    Attributes:
        module: path of the module that routes, relative to the block; it reads tokens and gives the experts' sum.
        router: path of the module whose weight, ``(experts, hidden)``, scores experts for a token.
        experts: path of the experts: a list of modules, or one module with a parameter for all.
        top_k: config attribute that says how many experts a token is sent to.
        normalised: config attribute that says whether their weights are made to sum to one; none where they always are.
    """

    module: str
    router: str
    experts: str
    top_k: str = "num_experts_per_tok"
    normalised: str | None = "norm_topk_prob"


@dataclass(frozen=True)
class Stack:
    """One pile of transformer blocks; paths are exact and relative to the block (``blocks``: to the base model).

    Attributes:
        name: what plans and checkpoints call the stack.
        blocks: path of the module list.
        up: path of the projection whose row ``j`` belongs to neuron ``j``; with ``fused``, also row ``j + neurons``.
        down: path of the projection whose column ``j`` belongs to neuron ``j``; its input is the neurons' activation.
        activation: path of the function between them: of what up gives, or of what the gate gives.
        width_attribute: config attribute, with dots where the config has parts, that holds the width when every layer
            of the stack has the same; none where the architecture computes it from others.
        residual: path of the module whose input is the residual stream that the FFN's output is added to. In
            post-norm blocks that is the up projection itself; in pre-norm blocks it is the norm before the FFN.
        attending: paths of the projections through which that attention reads what the block is given; none where
            they are used for something else too.
        attention: path of the projection whose output is added to the block's input: what attention has to say.
        after: path of the norm that the sum of that stream and the FFN's output goes through before the next block;
            none in pre-norm blocks.
        gate: path of the projection that is activated and multiplies up, row by row; none in a plain FFN.
        fused: whether ``up`` holds both, first the rows that are activated, then those that they multiply.
        parallel: whether attention's output is added beside the FFN's, which reads nothing of it.
        scale: path of the number, or of the module with one number per feature, that multiplies the FFN's output before
            it is added; none for one.
        attention_scale: the same for attention's output.
        between: path of the norm that the FFN's output goes through before it is added; attention's has one too then.
        side: which tokens the stack runs over.
        repeats: config attribute that says how often the list of blocks is run through; none for once.
        interrupted: whether the model changes hidden states between blocks, so that they do not fit end to end.
        routing: how tokens find their experts; none in a plain FFN. With experts, paths of up, gate and down are
            relative to one of them.
        when: config attributes a model must have for this description of the stack to be the right one.
    """

    name: str
    blocks: str
    up: str
    down: str
    activation: str
    width_attribute: str | None
    residual: str
    attending: tuple[str, ...]
    attention: str
    after: str | None = None
    gate: str | None = None
    fused: bool = False
    parallel: bool = False
    scale: str | None = None
    attention_scale: str | None = None
    between: str | None = None
    side: Side = "input"
    repeats: str | None = None
    interrupted: bool = False
    routing: Routing | None = None
    when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all modules that a block must have, beside the projections of the neurons."""
        routing = self.routing
        routed = () if routing is None else (routing.module, routing.router, routing.experts)
        norms = (path for path in (self.after, self.between) if path is not None)
        return (*routed, self.activation, self.residual, *self.attending, self.attention, *norms)

    @property
    def projections(self) -> tuple[str, ...]:
        """Paths of the projections of the neurons."""
        return tuple(path for path in (self.up, self.gate, self.down) if path is not None)


Row = tuple[tuple[Stack, ...], ...]
"""The stacks of an architecture in the order they run, each with alternative descriptions."""
