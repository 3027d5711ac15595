"""Tensor operations with native kernels and a plain torch reference beside each.

`wkv` is the scan of RWKV v2, v3 and v4; `toeplitz` holds the time weights of RWKV v1 and MHA_pro. torch is imported on
first use of a name, so that command lines which only parse arguments stay fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkv_lab.ops.scan import resolve_backend, wkv

__all__ = ["resolve_backend", "wkv"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rwkv_lab.ops import scan

    return getattr(scan, name)
