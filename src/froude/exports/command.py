"""Launch commands of serving engines: a table of flags for each engine, written and read by the same rows."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from froude.core.errors import FroudeError, InvalidValueError
from froude.serving.deployment import Deployment


@dataclass(frozen=True)
class Flag:
    """A flag with a value: what it is called, the argument of `froude.simulate_serve` it carries, and its type.

    ``words`` maps the engine's words for a value to ours, where they differ; ``always`` writes it even where the
    deployment has what `froude.simulate_serve` would take anyway.
    """

    flag: str
    name: str
    kind: Callable[[str], Any]
    words: dict[str, Any] | None = None
    always: bool = False


@dataclass(frozen=True)
class Switch:
    """A flag without a value: present, it sets arguments."""

    flag: str
    sets: dict[str, Any]


@dataclass(frozen=True)
class Launcher:
    """How one engine is started.

    Attributes:
        engine: name of the engine's mechanisms, of ``serving/engines.toml``.
        program: words of the command before the model.
        model_flag: the flag that names the model; None where it is the first plain word.
        flags, switches: the table.
        aliases: other spellings of flags.
        schedulers: of ours, those that this engine has.
        image, port: container and port, for Kubernetes.
    """

    engine: str
    program: tuple[str, ...]
    model_flag: str | None
    flags: tuple[Flag, ...]
    switches: tuple[Switch, ...]
    schedulers: tuple[str, ...]
    image: str
    port: int
    aliases: dict[str, str]

    def values(self, deployment: Deployment) -> dict[str, Any]:
        """The deployment as arguments of `froude.simulate_serve`.

        Raises:
            FroudeError: for a scheduler, or a prefix cache, that the engine does not have.
        """
        scheduler = deployment.scheduler
        if deployment.prefix_cache and deployment.prefixes != deployment.engine.prefixes:
            why = f"is not the prefix cache of {self.program[0]}; {deployment.engine.prefixes} is"
            raise InvalidValueError("prefixes", deployment.prefixes, why)
        if deployment.eviction != "lru":
            raise InvalidValueError("eviction", deployment.eviction, f"is not written for {self.program[0]}; lru is")
        if scheduler.name not in self.schedulers:
            have = " and ".join(self.schedulers) + (" are" if len(self.schedulers) > 1 else " is")
            raise InvalidValueError("scheduler", scheduler.name, f"is not in {self.program[0]}; {have}")
        return {
            "tensor_parallel": deployment.tensor_parallel,
            "data_parallel": deployment.data_parallel,
            "pipeline_parallel": deployment.pipeline_parallel,
            "expert_parallel": deployment.expert_parallel,
            "max_seqs": scheduler.max_seqs,
            "chunk_tokens": scheduler.max_batched_tokens // deployment.pipeline_parallel,
            "gpu_memory_utilization": deployment.pool.memory_fraction,
            "prefix_cache": deployment.prefix_cache,
            "kv_tiers": self.offloaded(deployment),
            "precision": deployment.engine.precision,
            "kv_dtype": deployment.engine.kv_dtype,
        }

    def offloaded(self, deployment: Deployment) -> float | None:
        """GiB of host memory that a replica's prefix cache goes down to, where the engine takes it as a flag.

        Raises:
            InvalidValueError: where it does not.
        """
        if deployment.tiers is None:
            return None
        names = ", ".join(tier.name for tier in deployment.tiers.tiers)
        raise InvalidValueError("kv_tiers", names, f"cannot be said in a launch command of {self.program[0]}")

    def write(self, deployment: Deployment) -> list[str]:
        """Words that start one replica of the deployment.

        Raises:
            FroudeError: for what the engine cannot do.
        """
        values = self.values(deployment)
        name = deployment.arch.name
        words = [*self.program, *([self.model_flag, name] if self.model_flag else [name])]
        for flag in self.flags:
            value = values[flag.name]
            if flag.words is not None:
                theirs = {ours: word for word, ours in reversed(flag.words.items())}
                if value not in theirs:
                    continue
                value = theirs[value]
            if flag.always or value not in (1, None):
                words += [flag.flag, f"{value:g}" if isinstance(value, float) else str(value)]
        for switch in self.switches:
            if all(values.get(k) == v for k, v in switch.sets.items()):
                words.append(switch.flag)
        return words

    def starts(self, words: Sequence[str]) -> int | None:
        """Where the words after the program begin, if this is the program."""
        for at in range(len(words) - len(self.program) + 1):
            head = [words[at].rpartition("/")[2], *words[at + 1 : at + len(self.program)]]
            if head[0].startswith("python") and self.program[0].startswith("python"):
                head[0] = self.program[0]
            if tuple(head) == self.program:
                return at + len(self.program)
        return None

    def read(self, command: str | Sequence[str]) -> dict[str, Any]:
        """Arguments of `froude.simulate_serve` from such a command; arguments that do not matter are passed over.

        Raises:
            FroudeError: when it is no such command, names no model, or a value is not of its flag's type.
        """
        words = shlex.split(command) if isinstance(command, str) else list(command)
        start = self.starts(words)
        if start is None:
            raise FroudeError(f"command: {shlex.join(words)!r} is no `{' '.join(self.program)} ...`")
        rest = words[start:]
        found: dict[str, Any] = {"engine": self.engine}
        if self.model_flag is None and rest and not rest[0].startswith("-"):
            found["model"] = rest[0]
        flags = {flag.flag: flag for flag in self.flags}
        switches = {switch.flag: switch for switch in self.switches}
        for at, word in enumerate(rest):
            name, equals, value = word.partition("=")
            name = self.aliases.get(name, name)
            value = value if equals else "".join(rest[at + 1 : at + 2])
            if name in ("--model", self.model_flag):
                found["model"] = value
            elif name in switches:
                found.update(switches[name].sets)
            elif name in flags:
                flag = flags[name]
                if flag.words is not None:
                    if value in flag.words:
                        found[flag.name] = flag.words[value]
                    continue
                try:
                    found[flag.name] = flag.kind(value)
                except ValueError:
                    raise InvalidValueError(name, value, "is not a number") from None
        if "model" not in found:
            raise FroudeError(f"command: {shlex.join(words)!r} names no model")
        return found

    def unread(self, words: Sequence[str]) -> tuple[str, ...]:
        """Flags of such a command that `read` does not look at."""
        known = {"--model", self.model_flag, *(flag.flag for flag in self.flags), *(one.flag for one in self.switches)}
        flags = (word.partition("=")[0] for word in words[self.starts(words) or 0 :] if word.startswith("--"))
        return tuple(flag for flag in flags if self.aliases.get(flag, flag) not in known)
