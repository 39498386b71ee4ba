"""Packed tokens as tensors: what a cell encoder takes, cut from cells that were tokenised once.

Legend: N tokens over all cells, C cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cellfoundry_model.tokens import Tokens


@dataclass(frozen=True)
class TokenBatch:
    """Encoder tokens of some cells on one device; see ``tokens.Tokens``.

    Attributes:
        value_N: float32, (N,).
        position_N: int64, (N,).
        cu_seqlens: int32, (C + 1,).
        max_seqlen: tokens of the longest cell.
    """

    value_N: Tensor
    position_N: Tensor
    cu_seqlens: Tensor
    max_seqlen: int

    def __len__(self) -> int:
        """Number of cells."""
        return self.cu_seqlens.numel() - 1

    def to(self, device: str | torch.device) -> TokenBatch:
        """The same tokens on ``device``; Lightning calls this for every batch."""
        return TokenBatch(
            self.value_N.to(device), self.position_N.to(device), self.cu_seqlens.to(device), self.max_seqlen
        )


class TokenizedCells:
    """Cells as packed tokens in memory, 12 bytes a token; ``cells[rows]`` is a batch of them, on the CPU.

    Args:
        parts: tokens of consecutive cells; at least one.

    Attributes:
        lengths: int32, (C,); tokens of each cell, 2 for a cell without counts, of which a pool makes NaN.
    """

    def __init__(self, parts: Sequence[Tokens]) -> None:
        lengths = np.concatenate([np.diff(part.cu_seqlens) for part in parts])
        self.lengths: npt.NDArray[np.int32] = lengths.astype(np.int32)
        self._value_N = np.concatenate([part.value_N for part in parts])
        self._position_N = np.concatenate([part.position_N for part in parts])
        # int64: the tokens of all cells can exceed 2**31, those of a batch cannot.
        self._first = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.lengths)

    def __getitem__(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> TokenBatch:
        """The tokens of the cells at ``rows``, in that order; at least one row."""
        chosen = [slice(self._first[row], self._first[row + 1]) for row in np.asarray(rows).tolist()]
        lengths = self.lengths[np.asarray(rows)]
        return TokenBatch(
            torch.from_numpy(np.concatenate([self._value_N[part] for part in chosen])),
            torch.from_numpy(np.concatenate([self._position_N[part] for part in chosen])),
            torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
            int(lengths.max()),
        )
