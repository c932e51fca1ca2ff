"""How repeatable a run is to be -> variables of its environment; pure. docs/reproducibility.md says what to expect."""

from __future__ import annotations

from repro.errors import BadInputError
from repro.experiment import Experiment

PORTABLE = "portable"
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)
DETERMINISTIC = {"TF_DETERMINISTIC_OPS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
X86 = ("AVX", "F16C", "FMA4", "FMA3", "XOP", "AVX2", "X86_V3", "X86_V4")  # as NumPy names them
AVX512 = ("AVX512F", "AVX512CD", "AVX512_SKX", "AVX512_CLX", "AVX512_CNL", "AVX512_ICL", "AVX512_SPR")
# Libraries choose their code by the processor, and another code rounds otherwise: all take what each processor has
SAME_CODE = {
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL": "0",  # of TensorFlow's matrix products: oneDNN's, by the processor
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "DNNL_MAX_CPU_ISA": "SSE41",  # its former name
    "OPENBLAS_CORETYPE": "Nehalem",
    "NPY_DISABLE_CPU_FEATURES": " ".join((*X86, *AVX512)),
    "ATEN_CPU_CAPABILITY": "default",  # PyTorch
    "MKL_CBWR": "COMPATIBLE",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD",
}


def environment(experiment: Experiment, cpus: float) -> dict[str, str]:
    """The variables for a run on `cpus` processors; those of the user's own go before.

    Raises:
        BadInputError: several threads are asked for where one alone keeps the promise.
    """
    portable = experiment.deterministic == PORTABLE
    if portable and experiment.threads not in (None, 1):
        raise BadInputError(
            f"configuration: threads: {experiment.threads} and deterministic: portable contradict each other",
            evidence=["sums of several threads are rounded in another order than those of one"],
            hints=[
                "leave threads out",
                "`deterministic: true` is the same from run to run, with as many threads",
            ],
        )
    threads = 1 if portable else experiment.threads or max(1, int(cpus))
    found = dict.fromkeys(THREADS, str(threads))
    if experiment.deterministic:
        found |= DETERMINISTIC
    return found | SAME_CODE if portable else found
