"""Models and clusters as claims describe them: by name, by fields, or as another one with some fields changed."""

from __future__ import annotations

from typing import Any

from froude.core.spec import Spec
from froude.machines.cluster import Cluster, parse_cluster
from froude.machines.device import find_device
from froude.models.architecture import Architecture
from froude.models.catalogue import resolve

Described = str | dict[str, Any]
"""A name, or fields; among them ``like`` names the one whose other fields are kept."""


class Use(Spec):
    """A technique or policy by name, with its knobs."""

    name: str
    knobs: dict[str, Any] = {}


def architecture(model: Described) -> Architecture:
    """The model described."""
    if isinstance(model, str):
        return resolve(model)
    changes = dict(model)
    like = changes.pop("like", None)
    if like is None:
        return Architecture.parse(changes, where="model")
    known = resolve(like).model_dump()
    if {"heads", "hidden"} & changes.keys():  # what follows from them must follow anew
        del known["kv_heads"], known["head_dim"]
    return Architecture.parse({**known, **changes}, where="model")


def cluster(machines: Described) -> Cluster:
    """The cluster described; its device may be another one changed."""
    if isinstance(machines, str):
        return parse_cluster(machines)
    fields = dict(machines)
    device = fields.get("device")
    if isinstance(device, dict) and "like" in device:
        changes = {name: value for name, value in device.items() if name != "like"}
        fields["device"] = {**find_device(device["like"]).model_dump(), **changes}
    return Cluster.parse(fields, where="cluster")
