"""How a deployment is started, whichever its engine; and how something that is started would be simulated."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from froude.core.errors import FroudeError, InvalidValueError
from froude.exports.command import Launcher
from froude.exports.sglang import SGLANG
from froude.exports.tensorrt_llm import TENSORRT_LLM, options
from froude.exports.vllm import VLLM
from froude.serving.deployment import Deployment

LAUNCHERS: dict[str, Launcher] = {
    "vllm": VLLM,
    "vllm-async": VLLM,
    "sglang": SGLANG,
    "tensorrt-llm": TENSORRT_LLM,
}
"""By the name of the engine's mechanisms."""


def launch_command(deployment: Deployment) -> list[str]:
    """Words that start one replica.

    Raises:
        FroudeError: for an engine that has no launcher, or a scheduler that the engine does not have.
    """
    name = deployment.engine.name
    if name not in LAUNCHERS:
        raise InvalidValueError("engine", name, f"has no launch command; {', '.join(LAUNCHERS)} have")
    return LAUNCHERS[name].write(deployment)


def launch_script(deployment: Deployment) -> str:
    """A shell script that starts one replica, with the file of options that TensorRT-LLM wants."""
    command = shlex.join(launch_command(deployment))
    if deployment.engine.name != "tensorrt-llm":
        return f"{command}\n"
    text = yaml.safe_dump(options(deployment), sort_keys=False)
    return f"cat > options.yaml <<'END'\n{text}END\n{command} --extra_llm_api_options options.yaml\n"


def kubernetes(deployment: Deployment, name: str = "froude") -> str:
    """A Kubernetes Deployment of all replicas, and a Service before them.

    Raises:
        FroudeError: as `launch_command`; also for separate prefill and decode workers: they need a router.
    """
    if deployment.prefill is not None:
        raise FroudeError("disaggregate: prefill and decode workers need a router that a plain Service is not")
    launcher = LAUNCHERS.get(deployment.engine.name)
    words = launch_command(deployment)
    assert launcher is not None
    devices = deployment.devices // deployment.replicas
    labels = {"app": name}
    container: dict[str, Any] = {
        "name": "engine",
        "image": launcher.image,
        "command": words,
        "ports": [{"containerPort": launcher.port}],
        "resources": {"limits": {"nvidia.com/gpu": devices}},
        "readinessProbe": {"httpGet": {"path": "/health", "port": launcher.port}, "periodSeconds": 10},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    objects: list[dict[str, Any]] = []
    if deployment.engine.name == "tensorrt-llm":
        text = yaml.safe_dump(options(deployment), sort_keys=False)
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"{name}-options"},
                "data": {"options.yaml": text},
            }
        )
        container["command"] = [*words, "--extra_llm_api_options", "/options/options.yaml"]
        container["volumeMounts"].append({"name": "options", "mountPath": "/options"})
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    if objects:
        volumes.append({"name": "options", "configMap": {"name": f"{name}-options"}})
    objects.append(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": {**labels}},
            "spec": {
                "replicas": deployment.replicas,
                "selector": {"matchLabels": {**labels}},
                "template": {
                    "metadata": {"labels": {**labels}},
                    "spec": {"containers": [container], "volumes": volumes},
                },
            },
        }
    )
    objects.append(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {**labels}, "ports": [{"port": 80, "targetPort": launcher.port}]},
        }
    )
    return str(yaml.safe_dump_all(objects, sort_keys=False))


def read_launch(text: str | Path) -> dict[str, Any]:
    """Arguments of `froude.simulate_serve` from a launch command, a shell script, or a Kubernetes manifest.

    Args:
        text: the command itself, or a file that holds it.

    Raises:
        FroudeError: when no engine's command is in it, or one is and cannot be read.
    """
    launcher, words, replicas = _command(text)
    read = launcher.read(words)
    return read if replicas is None else {**read, "replicas": replicas * read.get("replicas", 1)}


def unread_flags(text: str | Path) -> tuple[str, ...]:
    """Flags of the command that `read_launch` finds there and passes over, which simulations therefore go without."""
    launcher, words, _ = _command(text)
    return launcher.unread(words)


def _command(text: str | Path) -> tuple[Launcher, list[str], int | None]:
    """The engine, its command, and the replicas of a manifest."""
    path = Path(text)
    try:
        found = path.is_file()
    except OSError:  # a command can be too long for a file's name
        found = False
    if found:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            raise InvalidValueError("launch", path, "cannot be read as text") from None
        if path.suffix in (".yaml", ".yml"):
            return _read_manifest(text, path)
    return *_read_words(str(text)), None


def _read_words(text: str) -> tuple[Launcher, list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a line of something else
            continue
        for launcher in (VLLM, SGLANG, TENSORRT_LLM):
            if launcher.starts(words) is not None:
                return launcher, words
    known = ", ".join(f"`{' '.join(launcher.program)}`" for launcher in (VLLM, SGLANG, TENSORRT_LLM))
    raise FroudeError(f"launch: no engine's command is in {text.strip()[:80]!r}; known are {known}")


def _read_manifest(text: str, path: Path) -> tuple[Launcher, list[str], int]:
    try:
        objects = [o for o in yaml.safe_load_all(text) if isinstance(o, dict)]
    except yaml.YAMLError:
        raise InvalidValueError("launch", path, "is not YAML") from None
    for item in objects:
        if item.get("kind") not in ("Deployment", "StatefulSet"):
            continue
        spec = item.get("spec", {})
        for container in spec.get("template", {}).get("spec", {}).get("containers", []):
            words = [str(w) for w in [*container.get("command", []), *container.get("args", [])]]
            found = _read_words(shlex.join(words) if len(words) != 3 or words[1] != "-c" else words[2])
            return *found, int(spec.get("replicas", 1))
    raise InvalidValueError("launch", path, "holds no Deployment with a container")
