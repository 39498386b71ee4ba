"""The models that are served, each in one version or several, loaded and replaced while requests run.

A new version is opened and has warmed up before it takes the place of the old one, which answers what it has begun
and goes. All engines compute in one thread: on a CPU two at once would only fight over its cores.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from cellfoundry_serving.endpoint.batcher import TokenBatcher, too_busy
from cellfoundry_serving.endpoint.engine_thread import EngineThread
from cellfoundry_serving.endpoint.errors import RequestError
from cellfoundry_serving.endpoint.limits import Limits
from cellfoundry_serving.endpoint.metrics import Metrics, ModelMetrics
from cellfoundry_serving.endpoint.sources import ModelSource, Version
from cellfoundry_serving.engines.base import Engine
from cellfoundry_serving.errors import ServingError
from cellfoundry_serving.token_batches import SPECIAL_TOKENS

logger = logging.getLogger(__name__)


class ServedModel:
    """One version of a model.

    Attributes:
        name: of the model.
        version: its number.
        engine: computes.
        index: position of each gene name.
        identity: what its results depend on besides the cell and the conventions.
        batcher: shares the engine's calls; there after ``start``.
        metrics: what it has done.
    """

    batcher: TokenBatcher

    def __init__(self, name: str, version: Version, engine: Engine, metrics: ModelMetrics) -> None:
        self.name = name
        self.version = version.number
        self.mark = version.mark
        self.engine = engine
        self.index = {gene: position for position, gene in enumerate(engine.vocab_genes)}
        facts = (
            engine.info["weights_sha256"],
            engine.info["vocabulary_sha256"],
            engine.name,
            engine.precision,
        )
        self.identity = repr(facts).encode()
        self.metrics = metrics
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def in_use(self) -> Iterator[ServedModel]:
        """Keeps it open inside."""
        self._users += 1
        self._unused.clear()
        try:
            yield self
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()

    async def start(self, thread: EngineThread, limits: Limits) -> None:
        """Takes requests from here on, after a first batch; raises what the engine raises."""
        self.batcher = TokenBatcher(self.engine, thread, self.metrics, limits=limits)
        try:
            await self.batcher.warm_up()
        except BaseException:
            await self.batcher.close()
            raise

    async def stop(self) -> None:
        """Waits for the last request in hand."""
        await self._unused.wait()
        await self.batcher.close()


class Models:
    """All that is served; used inside one event loop after ``open``.

    Args:
        sources: of the models, the default one first; all engines are opened here.
        limits: of requests.
        metrics: of the endpoint.

    Raises:
        ServingError: a model that cannot be opened, or a name that comes twice.
        ModelError: a damaged model directory.
    """

    def __init__(self, sources: Sequence[ModelSource], limits: Limits, metrics: Metrics) -> None:
        self._sources = {source.name: source for source in sources}
        if len(self._sources) < len(sources):
            raise ServingError("Two models have the same name; give each its own, as NAME=DIR.")
        self._limits = limits
        self._metrics = metrics
        self._served = {
            source.name: {version.number: self._opened(source, version) for version in source.versions()}
            for source in sources
        }
        self._changing = asyncio.Lock()
        self._started: set[ServedModel] = set()
        self._background: set[asyncio.Task[None]] = set()

    def _opened(self, source: ModelSource, version: Version) -> ServedModel:
        engine = source.open(version)
        return ServedModel(source.name, version, engine, self._metrics.of_model(source.name, version.number))

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Takes requests inside, after a first batch of every model; all have been answered when it returns."""
        with ThreadPoolExecutor(1, thread_name_prefix="engine") as executor:
            self._thread = EngineThread(executor)
            try:
                for model in self.all():
                    await self._start(model)
                yield
            finally:
                self._let_go(list(self._started))
                while self._background:
                    await asyncio.gather(*self._background)

    async def _start(self, model: ServedModel) -> None:
        await model.start(self._thread, self._limits)
        self._started.add(model)
        batcher = model.batcher
        self._metrics.watch_queue(model.name, model.version, lambda: batcher.queued_tokens)

    def all(self) -> list[ServedModel]:
        """Every version of every model, the default model first."""
        return [model for name in self._sources for model in self._served.get(name, {}).values()]

    def versions(self, name: str) -> list[ServedModel]:
        """All versions of a model; RequestError 404 where there is none."""
        self.find(name)
        return list(self._served[name].values())

    def names(self) -> list[str]:
        """Of all models, those not loaded too."""
        return list(self._sources)

    def find(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """The newest version of the first model, or what is asked for; RequestError 404 where it is not there."""
        asked = next(iter(self._sources)) if name is None else name
        versions = self._served.get(asked)
        if asked not in self._sources:
            raise RequestError(
                f"There is no such model here; the models are {', '.join(map(repr, self._sources))}.", 404
            )
        if not versions:
            raise RequestError(f"Model {asked!r} is not loaded.", 404)
        if version is None:
            return versions[max(versions)]
        found = (
            versions.get(int(version))
            if version.isascii() and version.isdigit() and len(version) < 10
            else None
        )
        if found is None:
            known = ", ".join(map(str, versions))
            raise RequestError(f"Model {asked!r} has no such version here; there is {known}.", 404)
        return found

    def check_room(self) -> None:
        """RequestError 429 where no model would take a request now, whichever it asks for."""
        waits = [model.batcher.room_in_s(SPECIAL_TOKENS) for model in self.all()]
        if waits and min(waits) > 0:
            raise too_busy(min(waits))

    async def load(self, name: str) -> None:
        """Looks for new versions, opens them, and lets those go whose time is over.

        RequestError 404 for an unknown model, 400 where a new version cannot be opened; the log says why, and
        what was served goes on.
        """
        source = self._source(name)
        async with self._changing:
            held = self._served.get(name, {})
            try:
                fresh = await self._renewed(source, held)
            except Exception as error:
                logger.exception("Model %s: its new version cannot be opened", name)
                raise RequestError(
                    f"Model {name!r}: its new version cannot be opened; the server's log says why.", 400
                ) from error
            self._served[name] = fresh
            logger.info("Model %s: served are now %s", name, ", ".join(map(str, fresh)))
            self._let_go([model for model in held.values() if model not in fresh.values()])

    async def _renewed(self, source: ModelSource, held: dict[int, ServedModel]) -> dict[int, ServedModel]:
        """The versions that the source offers now; those held already are taken over."""
        fresh: dict[int, ServedModel] = {}
        opened: list[ServedModel] = []
        try:
            for version in await asyncio.to_thread(source.versions):
                model = held.get(version.number)
                if model is None or model.mark != version.mark:
                    model = await asyncio.to_thread(self._opened, source, version)
                    await self._start(model)
                    opened.append(model)
                fresh[version.number] = model
        except BaseException:
            self._let_go(opened)
            raise
        return fresh

    async def unload(self, name: str) -> None:
        """Lets all versions go after the requests they have in hand; RequestError 404 for an unknown model."""
        self._source(name)
        async with self._changing:
            self._let_go(list(self._served.pop(name, {}).values()))
            logger.info("Model %s: unloaded", name)

    def load_all_soon(self) -> None:
        """Begins ``load`` of every model; what cannot be opened is in the log."""
        self._in_background(self._load_all())

    async def _load_all(self) -> None:
        for name in self._sources:
            with contextlib.suppress(RequestError):
                await self.load(name)

    def _source(self, name: str) -> ModelSource:
        if name not in self._sources:
            raise RequestError(
                f"There is no such model here; the models are {', '.join(map(repr, self._sources))}.", 404
            )
        return self._sources[name]

    def _let_go(self, models: list[ServedModel]) -> None:
        self._started.difference_update(models)
        for model in models:
            self._in_background(self._stop(model))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _stop(self, model: ServedModel) -> None:
        await model.stop()
        if all((model.name, model.version) != (other.name, other.version) for other in self._started):
            self._metrics.forget_model(model.name, model.version)
