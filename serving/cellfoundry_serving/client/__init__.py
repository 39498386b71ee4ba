"""Clients of the endpoint: cells in, embeddings out. ``Client`` waits, ``AsyncClient`` is for an event loop.

Both share all that needs no connection: what is asked and how its answer is read (``models``, ``embedding`` and the
two wire forms), which failures are tried again and when (``retry``), and what the last one says (``call``).
"""

from cellfoundry_serving.client.asynchronous import AsyncClient
from cellfoundry_serving.client.sync import Client
from cellfoundry_serving.client.v2_wire import infer_body

__all__ = ["AsyncClient", "Client", "infer_body"]
