"""Where data lies: local paths, and URLs of any protocol that fsspec knows (s3, gs, az, http, memory, ...).

Object stores are reached through obstore (one wheel without dependencies, in the extra ``cloud``), which takes
credentials and endpoints from the usual environment variables (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``,
``GOOGLE_APPLICATION_CREDENTIALS``, ...).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from cellfoundry_data.errors import DataError

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem

OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "azure", "abfss")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")


def is_url(path: str | Path) -> bool:
    """Whether ``path`` names a protocol (``s3://bucket/store``); a ``Path`` never does."""
    return isinstance(path, str) and _URL.match(path) is not None


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system that serves ``url``, and the path of ``url`` in it.

    Raises:
        DataError: an unknown protocol, or one whose package is not installed (the extra is named).
    """
    import fsspec

    protocol = url.partition(":")[0]
    if protocol in OBJECT_STORES:
        try:
            from obstore.fsspec import register
        except ImportError as error:
            raise DataError(
                f"{url}: reading object stores needs the extra cloud: pip install 'cellfoundry[cloud]'."
            ) from error
        register(protocol)
    try:
        served, path = fsspec.core.url_to_fs(url)
    except (ImportError, OSError, ValueError) as error:
        raise DataError(f"{url}: cannot be reached ({str(error).rstrip('.')}).") from error
    return served, path
