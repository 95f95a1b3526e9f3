"""The `Router` contract: which replica takes a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from typing import ClassVar, Protocol

from froude.core.registry import Registry, Source
from froude.serving.policy import Sequence


class Replica(Protocol):
    """What a router sees of a replica.

    Attributes:
        outstanding: requests handed to it that are not complete.
        outstanding_tokens: tokens of their prompts.
    """

    outstanding: int
    outstanding_tokens: int


class Router(ABC):
    """Names a replica for each request as it arrives. One file each in `froude.serving.routers`."""

    name: ClassVar[str]
    source: ClassVar[Source]

    @abstractmethod
    def route(self, sequence: Sequence, replicas: Items[Replica]) -> int:
        """Index of the replica that takes it. Ties are the router's to break, the same way every time."""


ROUTERS: Registry[Router] = Registry("router", "froude.serving.routers", Router)
