"""What a kernel compiles to, without a GPU: registers, stack, shared memory, and the blocks that fit one processor.

``python -m cellfoundry_bench.compiled`` prints it for every launch of every op, for A100 (80) and H100 (90).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from cellfoundry_kernels.launch import Launch, all_published_launches

REGISTERS_PER_SM = 65_536
# By compute capability (CUDA C++ Programming Guide, technical specifications): threads of one multiprocessor; KiB
# of shared memory of one block, and of one multiprocessor.
THREADS_PER_SM = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 120: 1536}
SHARED_KIB = {80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228), 120: (99, 100)}


@dataclass(frozen=True)
class Resources:
    """What one launch takes of a multiprocessor.

    Attributes:
        registers: of a thread.
        stack_bytes: of a thread; more than none means that registers spilled.
        shared_bytes: of a block.
        blocks: that fit one multiprocessor at a time, by registers, threads and shared memory.
        warps: of those blocks, of 64 that a multiprocessor can hold.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    blocks: int
    warps: int

    @property
    def fits(self) -> bool:
        """Whether no register spilled and one block at least can run."""
        return not self.stack_bytes and self.blocks >= 1


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compile a launch for a compute capability (80 is A100, 90 is H100 and H200); needs triton, no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature = {name: launch.types.get(name, "constexpr") for name in names}
    # Tensors of torch start at multiples of 16 bytes.
    aligned = [name for name in names if signature[name].startswith("*") or name in launch.aligned]
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in launch.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    usage = _usage(
        compiled.asm["cubin"], Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    )
    registers = max(int(n) for n in re.findall(r"REG:(\d+)", usage))
    stack = sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
    shared, warps = compiled.metadata.shared, launch.options["num_warps"]
    fits = [REGISTERS_PER_SM // (registers * warps * 32), THREADS_PER_SM[capability] // (warps * 32)]
    if shared:
        fits.append(
            SHARED_KIB[capability][1] * 1024 // (shared + 1024)
        )  # the driver keeps 1 KiB of each block
    return Resources(registers, stack, shared, min(fits), min(fits) * warps)


@contextmanager
def compiled_in_parallel(
    chosen: Iterable[tuple[Launch, int]],
) -> Iterator[dict[tuple[str, int], Future[Resources]]]:
    """What published launches compile to, by name and compute capability; two processes take them in this order."""
    number = {
        (launch.name, capability): place
        for place, launch in enumerate(all_published_launches())
        for capability in launch.capabilities
    }
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield {
            (launch.name, capability): pool.submit(
                _compile_published, number[launch.name, capability], capability
            )
            for launch, capability in chosen
        }
        pool.shutdown(cancel_futures=True)


def _compile_published(number: int, capability: int) -> Resources:
    """A launch by its number, because kernels cannot be sent to a process."""
    return compile_launch(all_published_launches()[number], capability)


def _usage(cubin: bytes, tool: Path) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout


def main() -> None:
    """A line a launch and device."""
    print(f"{'launch':56} sm registers stack shared KiB blocks warps")
    for launch in all_published_launches():
        for capability in launch.capabilities:
            of = compile_launch(launch, capability)
            print(
                f"{launch.name:56} {capability} {of.registers:9} {of.stack_bytes:5} {of.shared_bytes / 1024:10.0f} "
                f"{of.blocks:6} {of.warps:5}"
            )


if __name__ == "__main__":
    main()
