"""Any server that streams completions as OpenAI's does: requests are sent when they are due, tokens timed as they come.

Prompts are token ids (``prompt: [..]`` of ``/v1/completions``, which vLLM, SGLang and others take), so no tokenizer is
needed. Each request has a connection of its own; one thread serves them all, and does nothing between events.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from froude.core.errors import FroudeError, InvalidValueError
from froude.runtime.engine.hosts import Host, OnRequests
from froude.runtime.engine.replay import Arrival, Log, RequestLog
from froude.runtime.engine.spec import ServeSpec
from froude.serving.metrics import PS

_KEY = "OPENAI_API_KEY"  # sent as bearer token, when the environment has it
_LINE_BYTES = 1 << 22
_CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Address:
    host: str
    port: int
    path: str
    encrypted: bool

    @classmethod
    def parse(cls, url: str) -> _Address:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidValueError("endpoint", url, "is no address such as http://127.0.0.1:8000")
        encrypted = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/completions"
        return cls(parts.hostname, parts.port or (443 if encrypted else 80), path, encrypted)


class EndpointHost(Host):
    """A server somewhere, of which only its answers are seen."""

    def __init__(self, spec: ServeSpec) -> None:
        self.spec, self.vocab = spec, spec.endpoint_vocab
        assert spec.endpoint is not None  # the spec sees to it
        self._address = _Address.parse(spec.endpoint)
        self.model_name = str(spec.model)

    def check(self, spec: ServeSpec, arrivals: Items[Arrival]) -> None:
        """Whether anybody listens there."""

        async def knock() -> None:
            _, writer = await self._connect()
            writer.close()

        asyncio.run(knock())

    def serve(self, spec: ServeSpec, arrivals: Items[Arrival], on_progress: OnRequests | None = None) -> Log:
        """See `Host`."""
        log = Log(started_at=time.time())
        try:
            asyncio.run(self._serve(log, spec, arrivals, on_progress))
        except KeyboardInterrupt:
            log.interrupted = True
        except ExceptionGroup as group:  # of requests: the first that failed ended the others
            raise group.exceptions[0] from None
        return log

    async def _serve(self, log: Log, spec: ServeSpec, arrivals: Items[Arrival], on_progress: OnRequests | None) -> None:
        zero_s = time.perf_counter()
        complete = 0
        free = asyncio.Semaphore(spec.concurrency or len(arrivals))

        async def send(arrival: Arrival) -> None:
            nonlocal complete
            request = log.requests[arrival.sequence.id]
            await self._generate(arrival, request, zero_s)
            free.release()
            complete += 1
            if on_progress:
                on_progress(complete, time.perf_counter() - zero_s)

        async with asyncio.TaskGroup() as tasks:
            for arrival in arrivals:
                due_s = arrival.sequence.arrival_ps / PS
                if spec.concurrency is None:
                    await asyncio.sleep(max(0.0, due_s - (time.perf_counter() - zero_s)))
                await free.acquire()
                if spec.concurrency is not None:
                    due_s = time.perf_counter() - zero_s
                    arrival.sequence.arrival_ps = int(due_s * PS)
                log.requests[arrival.sequence.id] = RequestLog(arrival.sequence, due_s)
                tasks.create_task(send(arrival))

    async def _generate(self, arrival: Arrival, request: RequestLog, zero_s: float) -> None:
        tokens = arrival.sequence.output_tokens
        asked = {
            "model": self.model_name,
            "prompt": arrival.prompt,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        chunks: list[float] = []  # when one came
        token_s: list[float] = []  # of each token, where the server says with every chunk how many there are by now
        total = 0
        async for event in self._events(asked):
            now_s = time.perf_counter() - zero_s
            total = int((event.get("usage") or {}).get("completion_tokens") or 0) or total
            if not (choices := event.get("choices")):
                continue
            if len(token_s) >= len(chunks):
                token_s += [now_s] * (total - len(token_s))
            # Without a tokenizer, or in the middle of a character, a token has no text.
            if any(c.get("text") or c.get("token_ids") or c.get("finish_reason") is None for c in choices):
                chunks.append(now_s)
        count = total or len(chunks)
        if not (chunks or token_s):
            raise FroudeError(f"endpoint: request {arrival.sequence.id} was answered with no token")
        if len(token_s) < count:  # a chunk may bring several tokens: all of them came when it did
            token_s = [chunks[place * len(chunks) // count] for place in range(count)]
        request.token_s = token_s
        request.sequence.output_tokens = count
        request.finished = True

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = self._address
        context = ssl.create_default_context() if address.encrypted else None
        try:
            connecting = asyncio.open_connection(address.host, address.port, ssl=context, limit=_LINE_BYTES)
            return await asyncio.wait_for(connecting, _CONNECT_S)
        except (OSError, TimeoutError) as error:
            raise FroudeError(f"endpoint: {self.spec.endpoint} does not answer ({error or 'timed out'})") from None

    async def _events(self, asked: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Server-sent events of one answer."""
        reader, writer = await self._connect()
        try:
            body = json.dumps(asked).encode()
            key = os.environ.get(_KEY)
            head = [
                f"POST {self._address.path} HTTP/1.1",
                f"Host: {self._address.host}:{self._address.port}",
                "Content-Type: application/json",
                "Accept: text/event-stream",
                "Connection: close",
                f"Content-Length: {len(body)}",
                *([f"Authorization: Bearer {key}"] if key else []),
            ]
            writer.write("\r\n".join((*head, "", "")).encode() + body)
            await writer.drain()
            status = (await reader.readline()).decode("latin-1").strip()
            chunked = False
            while (line := (await reader.readline()).strip()) != b"":
                name, _, value = line.decode("latin-1").partition(":")
                chunked = chunked or (name.lower() == "transfer-encoding" and "chunked" in value.lower())
            lines = _chunked_lines(reader) if chunked else _plain_lines(reader)
            if status.split()[1:2] != ["200"]:
                said = b"".join([line async for line in lines]).decode("utf-8", "replace")[:300]
                raise FroudeError(f"endpoint: answered {status!r} ({' '.join(said.split())})")
            async for line in lines:
                field, _, value = line.decode("utf-8").strip().partition(":")
                if field != "data" or value.strip() == "[DONE]":
                    continue
                event = json.loads(value)
                if "error" in event:
                    raise FroudeError(f"endpoint: {event['error']}")
                yield event
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise FroudeError(
                f"endpoint: {self.spec.endpoint} broke off in the middle of an answer ({error})"
            ) from None
        finally:
            writer.close()


async def _plain_lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while line := await reader.readline():
        yield line


async def _chunked_lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a body in chunks (RFC 9112, section 7.1); a line may cross them."""
    rest = b""
    while size := int((await reader.readline()).split(b";")[0] or b"0", 16):
        rest += await reader.readexactly(size)
        await reader.readline()
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest
