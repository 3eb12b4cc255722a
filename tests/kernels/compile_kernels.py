"""Compile every kernel as it is called, for a GPU that need not be there; prints what ptxas says of each.

`python tests/compile_kernels.py 90` for compute capability 9.0. Run without TRITON_INTERPRET, in a process of its own: it
puts itself between the kernels and the driver.
"""

import json
import subprocess
import sys
import tempfile

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit

from crosscoders.kernels import backends, gpu, sparse_code
from crosscoders.kernels.adam_step import adam_numbers, seed


class Absent:
    """A driver whose GPU is compiled for but not there."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target


def compile_all(capability: int) -> dict[str, list]:
    """Compile the kernels; their code by name."""
    driver.set_active(Absent(capability))
    compiled, run = {}, jit.JITFunction.run

    def compile_alone(self, *given, grid, warmup, **options):
        compiled.setdefault(self.fn.__name__, []).append(run(self, *given, grid=grid, warmup=True, **options))

    jit.JITFunction.run = compile_alone
    ours, tokens, m, width = backends.triton(), 256, 512, 1024
    for dtype in (torch.float32, torch.float64):
        x, weights, bias = (
            torch.randn(tokens, width).to(dtype),
            torch.randn(m, width).to(dtype),
            torch.zeros(width, dtype=dtype),
        )
        code = sparse_code.of_dense((torch.rand(tokens, m) > 0.99).to(dtype))
        for decoder in (weights, weights.bfloat16()):
            ours.decode(code, decoder, bias)
            ours.value_gradients(code, x, decoder)
        gpu.pairs_above(x, weights, torch.zeros(m, dtype=dtype), torch.ones(m, dtype=dtype))
        gradient = ours.weight_gradient(sparse_code.ByLatent(code), code.values, x)
        gradient.squared_norm()
        for precision in (None, torch.bfloat16):
            moments = [torch.zeros_like(weights, dtype=precision) for _ in range(2)]
            for given, step in ((gradient, 1), (gradient.dense(), 2)):
                numbers = adam_numbers(1e-3, 1.0, step, (0.9, 0.999))
                ours.adam_step(weights, moments, given, seed(0, step), numbers)
    return compiled


def spilled(code, capability: int) -> int:
    """Bytes that did not fit in registers."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(code.asm["ptx"])
        file.flush()
        architecture = f"sm_{capability}{'a' if capability == 90 else ''}"
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(said.split(" bytes spill stores")[0].split()[-1])


def main() -> None:
    """Print a line of JSON."""
    capability = int(sys.argv[1])
    found = {
        name: {
            "variants": len(codes),
            "spilled": max(spilled(code, capability) for code in codes),
            "tensor_cores": any("mma" in code.asm["ptx"] for code in codes),
        }
        for name, codes in compile_all(capability).items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
