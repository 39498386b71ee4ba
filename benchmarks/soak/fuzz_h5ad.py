"""Files that are nearly an h5ad: bytes changed, or whole HDF5 files whose parts are not what they should be."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np
from fuzz_values import changed_bytes

ATTRIBUTES = ("encoding-type", "encoding-version", "shape", "_index", "column-order", "ordered", "categories")
ENCODINGS = (
    "array", "csr_matrix", "csc_matrix", "dataframe", "dict", "categorical", "string-array", "string", "anndata",
    "raw", "nullable-integer", "nullable-boolean", "numeric-scalar", "rec-array", "awkward-array", "null", "x", "",
)  # fmt: skip
VERSIONS = ("0.1.0", "0.2.0", "9.9.9", "", "x")
NUMBERS = (0, 1, -1, 2, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 10**7)
DTYPES = ("i1", "u1", "i4", "<u8", ">i8", "f2", "<f4", ">f8", "c8", "bool", "S3", "O", "V5")
LARGEST = 2**24  # numbers in a dataset that is put in; what is declared may be larger


def wrong_h5ad(rng: random.Random, right: bytes) -> bytes:
    """The file with one to three things wrong: in half of them bytes, in half parts; in a few both."""
    if rng.random() < 0.4:
        return changed_bytes(rng, right)
    content = io.BytesIO(right)
    with h5py.File(content, "r+") as file:
        for _ in range(rng.randint(1, 3)):
            # What HDF5 itself does not write is another part that stays right.
            try:
                rng.choice(CHANGES)(rng, file)
            except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError):
                continue
    body = content.getvalue()
    return changed_bytes(rng, body) if rng.random() < 0.1 else body


def names(file: h5py.File) -> list[str]:
    """All groups and datasets but the root."""
    found: list[str] = []
    file.visit(found.append)
    return found


def datasets(file: h5py.File) -> list[str]:
    """All datasets."""
    return [name for name in names(file) if isinstance(file.get(name), h5py.Dataset)]


def replaced(file: h5py.File, name: str, value: Any, **options: Any) -> None:
    """Another dataset with the attributes of the old one."""
    attributes = dict(file[name].attrs)
    del file[name]
    node = file.create_dataset(name, data=value, **options)
    for key, attribute in attributes.items():
        node.attrs[key] = attribute


def another_type(rng: random.Random, file: h5py.File) -> None:
    """The values of a dataset in another dtype."""
    name = rng.choice(datasets(file))
    dtype = rng.choice(DTYPES)
    values = np.asarray(file[name][()])
    if dtype == "O":
        replaced(file, name, values.astype(str).astype(object), dtype=h5py.string_dtype())
    elif dtype == "V5":
        replaced(file, name, np.zeros(values.shape, np.dtype([("a", "i1"), ("b", "f4")])))
    else:
        replaced(file, name, values.astype(dtype))


def another_shape(rng: random.Random, file: h5py.File) -> None:
    """Longer, shorter, empty, a scalar, or with one axis more."""
    name = rng.choice(datasets(file))
    values = np.asarray(file[name][()])
    kind = rng.randrange(6)
    if kind == 0:
        replaced(file, name, values.reshape(-1)[: rng.randrange(values.size + 1)])
    elif kind == 1:
        replaced(file, name, np.concatenate([values.reshape(-1)] * 2))
    elif kind == 2:
        replaced(file, name, values[None])
    elif kind == 3:
        replaced(file, name, values.reshape(-1)[0])
    elif kind == 4:
        replaced(file, name, h5py.Empty(values.dtype))
    else:
        shape = rng.choice(((10**9,), (2**40,), (10**6, 10**6), (0,), (0, 5), (LARGEST,)))
        replaced(
            file, name, None, shape=shape, dtype=values.dtype, chunks=tuple(min(n, 1000) or 1 for n in shape)
        )


def another_value(rng: random.Random, file: h5py.File) -> None:
    """One number of a dataset, or one text."""
    dataset = file[rng.choice(datasets(file))]
    values = np.asarray(dataset[()])
    flat = values.reshape(-1)
    if values.dtype.kind in "OS":
        texts: tuple[Any, ...] = ("", "\x00", "x" * 70_000, b"\xff\xfe", "\ud800", "a\nb", "nan", flat[0])
        flat[rng.randrange(flat.size)] = rng.choice(texts)
    elif values.dtype.kind == "f":
        flat[rng.randrange(flat.size)] = rng.choice(
            (np.nan, np.inf, -np.inf, 1e-45, 3e38, 0.5, -1, 2**24 + 1)
        )
    else:
        flat[rng.randrange(flat.size)] = rng.choice(NUMBERS)
    dataset[()] = values


def another_attribute(rng: random.Random, file: h5py.File) -> None:
    """One that tells what a part is: other, odd, or gone."""
    node: Any = file[rng.choice(["/", *names(file)])]
    name = rng.choice(ATTRIBUTES)
    values: tuple[Any, ...] = (
        rng.choice(ENCODINGS), rng.choice(VERSIONS), rng.choice(NUMBERS), [rng.choice(NUMBERS)] * 2, [], "index",
        [rng.randrange(500), rng.randrange(500)], ["a", "b"], np.nan, b"\xff", h5py.Empty("f4"), True, [[1, 2], [3, 4]],
    )  # fmt: skip
    if rng.random() < 0.25:
        del node.attrs[name]
    else:
        node.attrs[name] = rng.choice(values)


def gone(rng: random.Random, file: h5py.File) -> None:
    """A part is missing."""
    del file[rng.choice(names(file))]


def elsewhere(rng: random.Random, file: h5py.File) -> None:
    """A part has the name of another one, stands in two places, or is a link to nothing or to itself."""
    name, other = rng.choice(names(file)), rng.choice(names(file))
    kind = rng.randrange(5)
    if kind == 0:
        file.move(name, f"{other}/moved")
    elif kind == 1:
        moved = file[other]
        del file[name]
        file[name] = moved
    elif kind == 2:
        del file[name]
        file[name] = h5py.SoftLink(rng.choice(("/nowhere", "/", f"/{name}", f"/{other}", "..")))
    elif kind == 3:
        file[f"{other}/again"] = file[rng.choice(("/", name))]
    else:
        del file[name]
        file.create_group(name)


CHANGES: tuple[Callable[[random.Random, h5py.File], None], ...] = (
    another_type,
    another_shape,
    another_value,
    another_value,
    another_attribute,
    another_attribute,
    gone,
    elsewhere,
)
