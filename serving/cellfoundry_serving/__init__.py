"""Exports, engines, batch embedding, the endpoint and its client."""
