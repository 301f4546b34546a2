"""The triton backend: its numbers by interpretation, its kernels by compiling them for GPUs that are not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from common.errors import InputError
from model.attention import attention, triton_kernels, triton_silu
from model.attention.dropout import Dropout
from model.biases import ScoreBiases
from model.mask import Mask

ROOT = Path(__file__).parents[3]
KERNELS = ("forward_kernel", "query_gradient_kernel", "key_gradient_kernel")
WIDTH, TIME_BUCKETS = 64, 64
VECTORS = {"q", "k", "v", "out", "grad_out", "grad_q", "grad_k", "grad_v"}
FLOATS = {"scale", "soft_cap", "kept_factor"}
INTEGER_POINTERS = {"query_times", "key_times", "places", "blocks"}
INTEGERS = {"T", "P", "heads", "seed", "threshold"}

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
"""Most bytes that a block may have on an A100, and on an H100."""

compiled: list[str] = []


def test_numbers_by_interpretation() -> None:
    """In a process of its own: whether to interpret is decided at import."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    path = Path(__file__).with_name("triton_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) > 25, done.stdout
    assert "skipped" not in done.stdout, done.stdout


def source(kernel: Any, dtype: torch.dtype, block: int, *, alone: bool) -> ASTSource:
    """A kernel with everything switched on, as it is launched for contiguous tensors; some tokens alone, or none."""
    constants = triton_silu.kernel_constants(block, WIDTH, WIDTH, dtype)
    constants |= {"CAPPED": True, "DROPOUT": True, "PADDED_T": TIME_BUCKETS}
    if not alone:
        constants["places"] = None
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    element = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}[dtype]

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in INTEGERS or name.endswith(("_token", "_head")):
            return "i32"
        if name in VECTORS:
            return element
        return "fp32" if name in FLOATS else "*i32" if name in INTEGER_POINTERS else "*fp32"

    signature = {name: type_of(name) for name in kernel.arg_names}
    aligned = [
        place
        for place, (name, kind) in enumerate(signature.items())
        if kind.startswith("*") or name.endswith(("_token", "_head"))
    ]
    return ASTSource(kernel, signature, constants, {(place,): [["tt.divisibility", 16]] for place in aligned})


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("alone", [False, True], ids=["", "alone"])
@pytest.mark.parametrize("name", KERNELS)
def test_compiles_without_spilling(
    name: str, alone: bool, dtype: torch.dtype, architecture: int, tmp_path: Path
) -> None:
    block = triton_silu.forward_block(WIDTH, WIDTH) if name == "forward_kernel" else triton_silu.BLOCK
    binary = triton.compile(
        source(getattr(triton_kernels, name), dtype, block, alone=alone),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": triton_silu.WARPS, "num_stages": triton_silu.STAGES},
    )
    path = tmp_path / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", told)[1]) for key in ("REG", "STACK", "LOCAL"))
    shared = binary.metadata.shared
    row = f"{name:22} {'alone' if alone else '':5} {str(dtype)[6:]:9} sm_{architecture} "
    row += f"{registers:9} {shared:13} {stack + local:11}"
    compiled.append(row)
    assert stack + local == 0, f"registers spill: {row}"
    assert shared <= SHARED_MEMORY[architecture], row


def test_table_of_the_compiled_kernels() -> None:
    if len(compiled) < 24:
        pytest.skip("only part of the kernels was compiled")
    print(f"\n{'kernel':28} {'dtype':9} {'GPU':5} {'registers':>9} {'shared memory':>13} {'spill bytes':>11}")
    print("\n".join(compiled))


@settings(deadline=None, max_examples=100)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    padding=st.integers(0, 9),
    block=st.sampled_from((4, 16)),
)
def test_blocks_cover_every_token_once_the_longest_walk_first(lengths: list[int], padding: int, block: int) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    for of_keys in (False, True):
        expected = []
        for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            firsts = range(start, stop, block)
            expected += [(first, start, stop, stop if of_keys else first) for first in firsts]
        found = triton_silu.make_blocks(Mask(offsets), sum(lengths) + padding, block, of_keys=of_keys)
        assert found.dtype == torch.int32
        rows = [tuple(row) for row in found.tolist()]
        busy = [row for row in rows if row[0] < row[2]]
        assert sorted(busy) == expected
        assert rows[: len(busy)] == busy
        walks = [stop - first if of_keys else first - start for first, start, stop, _ in busy]
        assert walks == sorted(walks, reverse=True)


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    alone=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_the_walks_of_blocks_meet_every_pair_and_no_tile_in_vain(lengths: list[int], alone: float, seed: int) -> None:
    """A tile is needed if any query sees any key of it, and a block's own always."""
    tokens, block = sum(lengths), 4
    alone_L = torch.rand(tokens, generator=torch.Generator().manual_seed(seed)) < alone
    mask = Mask(torch.tensor([0, *lengths]).cumsum(0), alone_L)
    token = torch.arange(tokens)
    seen = mask.visible(token[:, None], token[None, :]) if tokens else torch.zeros(0, 0)
    for first, start, stop, far in triton_silu.make_blocks(mask, tokens, block, of_keys=False).tolist():
        walked = {*range(start, far, block), first} if first < stop else set()
        needed = {j for j in range(start, first, block) if seen[first:stop][:block, j : min(j + block, stop)].any()}
        last = max(needed, default=start - block)
        assert walked == ({*range(start, last + 1, block), first} if first < stop else set())
    for first, _, stop, far in triton_silu.make_blocks(mask, tokens, block, of_keys=True).tolist():
        keys = slice(first, min(first + block, stop))
        is_seen = bool(seen[keys.stop :, keys].any())
        assert far >= keys.stop
        assert far == stop or not is_seen
        assert far <= first + block or bool((~alone_L[keys]).any())


def run(dtype: torch.dtype = torch.float32, kind: str = "silu", dropout: Dropout | None = None) -> None:
    q = torch.ones(4, 1, 16, dtype=dtype)
    normaliser = torch.ones(4) if kind == "silu" else None
    mask = Mask(torch.tensor([0, 4]))
    attention(
        q, q, q, mask, ScoreBiases(), backend="triton", kind=kind, scale=1.0, normaliser_L=normaliser, dropout=dropout
    )


def test_all_faults_at_once() -> None:
    with pytest.raises(InputError) as caught:
        run(torch.float64, "softmax")
    kind, device, dtype = caught.value.faults
    assert "computes kind=silu, not softmax" in kind
    assert "runs on a GPU, and the tensors are on cpu: set attention.backend=jagged" in device
    assert "does not know torch.float64" in dtype


def test_without_triton_the_fault_says_what_to_do() -> None:
    program = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from common.errors import InputError\n"
        "try:\n"
        "    from model.attention import triton_silu\n"
        "except InputError as fault:\n"
        "    print(fault)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "needs the package triton, which is not installed" in done.stdout
    assert "set attention.backend=jagged" in done.stdout
